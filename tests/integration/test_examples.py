"""What stands in examples/ is short, says what it is, and does it: in real runs against real servers."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests.integration.example_runs import EXAMPLES, ExampleRuns, example_files, settings_text

MAX_LINES = 40
CALLS_TRAIN = {"suffix_truncation.py"}
"""Programs of their own, which import what runs a training besides."""


@pytest.mark.parametrize("path", example_files(), ids=lambda path: path.name)
def test_an_example_is_short_and_says_what_to_set(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) <= MAX_LINES
    assert settings_text(path)
    words = text.split("[")[0]
    assert "arXiv" in words or "no paper" in words, "name the paper, or say that there is none"


@pytest.mark.parametrize("path", example_files(), ids=lambda path: path.name)
def test_the_readme_and_a_test_know_the_example(path: Path) -> None:
    assert f"]({path.name})" in (EXAMPLES / "README.md").read_text()
    tests = [file.read_text() for file in Path(__file__).parent.glob("test_examples*.py")]
    assert any(f'train("{path.stem}"' in text for text in tests), "no test trains it"


@pytest.mark.parametrize("path", [path for path in example_files() if path.suffix == ".py"], ids=lambda path: path.name)
def test_an_example_needs_one_import_of_ours(path: Path) -> None:
    imports = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ImportFrom)]
    ours = [str(node.module) for node in imports if str(node.module).startswith("preceptor")]
    assert ours.count("preceptor_client.extend") == len(ours) == 1 or path.name in CALLS_TRAIN, ours


def test_suffix_truncation_trains_on_the_first_tokens_alone(examples: ExampleRuns) -> None:
    trained = examples.train("suffix_truncation", put={"num_tokens = 32": "num_tokens = 3"})
    assert trained.weights_change > 0
    for step, row in zip(trained.steps, trained.rows, strict=True):
        assert row["num_weighted_positions"] == sum(min(len(one.scores.positions_N), 3) for one in step.scored)
        assert row["num_positions"] == sum(len(one.scores.positions_N) for one in step.scored)
