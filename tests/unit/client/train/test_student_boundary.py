"""Who may touch the student's model and head: `train/student` alone. Training has one door, `Student.module`."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

TRAIN = Path(__file__).parents[4] / "client" / "preceptor_client" / "train"
FOLDERS = ("learner", "objective", "evaluation", "instruments", "record", "run")
INSIDES = ("model", "head", "base", "unwrapped")
"""Attributes of a student, or of its module, that lead past the module's forward."""
STUDENTS = ("student", "start", "module")
"""What variables and attributes that hold a student are called, with or without an underscore before it."""
FORBIDDEN_IMPORTS = ("student.head", "student.flat", "student.padded", "student.probe", "student.hidden.scored_hidden")
ALLOWED = {
    # Generation calls the model once per token: a hook on it lets a request to stop end a long response.
    ("evaluation/heldout.py", "self._student.base"),
    ("run/trainer.py", "self.student.base"),
}


def touches(source: str) -> Iterator[str]:
    """Every expression and import of the source that leads past the module's forward."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute) and node.attr in INSIDES and _is_student(node.value):
            yield ast.unparse(node)
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        yield from (
            name for name in names if name.removeprefix("preceptor_client.train.").startswith(FORBIDDEN_IMPORTS)
        )


def _is_student(node: ast.expr) -> bool:
    """Not the settings of one, `config.student`."""
    if isinstance(node, ast.Attribute):
        return node.attr.lstrip("_") in STUDENTS and not ast.unparse(node.value).endswith("config")
    return isinstance(node, ast.Name) and node.id.lstrip("_") in STUDENTS


def test_training_touches_the_student_through_its_module_alone() -> None:
    files = [path for folder in FOLDERS for path in sorted((TRAIN / folder).rglob("*.py"))]
    assert len(files) > 2 * len(FOLDERS), "no sources found: the test would prove nothing"
    found = {(str(path.relative_to(TRAIN)), touch) for path in files for touch in touches(path.read_text())}
    assert found == ALLOWED


@pytest.mark.parametrize(
    ("source", "touch"),
    [
        ("logits = self._student.head.logits(hidden)", "self._student.head"),
        ("states = student.model(ids)", "student.model"),
        ("body = trainer.student.base", "trainer.student.base"),
        ("self._start.module.model.requires_grad_(False)", "self._start.module.model"),
        ("student.unwrapped.forward(sequences)", "student.unwrapped"),
        ("from preceptor_client.train.student.head import Head", "preceptor_client.train.student.head.Head"),
        (
            "from preceptor_client.train.student.hidden import ScoredSequence, scored_hidden_states",
            "preceptor_client.train.student.hidden.scored_hidden_states",
        ),
        ("folder = self._config.student.model", None),
        ("outputs = self._student.module(sequences)", None),
    ],
)
def test_what_leads_past_the_module_is_seen(source: str, touch: str | None) -> None:
    assert list(touches(source)) == ([touch] if touch else [])
