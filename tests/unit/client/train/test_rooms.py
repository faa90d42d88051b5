"""The trainer is a house of rooms, and its imports go one way: docs/architecture.md draws it."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import preceptor_client.train
import pytest

TRAIN = Path(preceptor_client.train.__file__).parent
PACKAGE = "preceptor_client.train"
ROOMS = (
    "data",
    "environment",
    "student",
    "rollout",
    "teacher",
    "objective",
    "learner",
    "record",
    "instruments",
    "evaluation",
    "tasks",
    "start",
    "report",
    "run",
)
"""Each may import from those before it."""
GROUND = ("errors", "parts", "stop")
"""Modules below all rooms."""
SECTIONS_ALONE = {"student", "teacher", "rollout", "objective", "learner", "evaluation", "data", "environment"}
"""Rooms that know nothing of a whole run's settings."""


def imports_of(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def room_of(module: str) -> str:
    return module.removeprefix(f"{PACKAGE}.").split(".")[0]


def test_every_folder_is_a_room_and_every_other_module_is_the_ground() -> None:
    folders = {path.parent.name for path in TRAIN.glob("*/__init__.py")}
    assert folders == set(ROOMS)
    assert {path.stem for path in TRAIN.glob("*.py")} == {"__init__", *GROUND}


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_from_those_before_it_alone(room: str) -> None:
    allowed = {*ROOMS[: ROOMS.index(room) + 1], *GROUND}
    files = sorted((TRAIN / room).rglob("*.py"))
    assert files
    wrong = [
        f"{path.relative_to(TRAIN)} imports {module}"
        for path in files
        for module in imports_of(path)
        if module.startswith(f"{PACKAGE}.") and room_of(module) not in allowed
    ]
    assert wrong == []


def test_the_ground_imports_no_room() -> None:
    wrong = [
        f"{name} imports {module}"
        for name in GROUND
        for module in imports_of(TRAIN / f"{name}.py")
        if module.startswith(f"{PACKAGE}.") and room_of(module) not in GROUND
    ]
    assert wrong == []


def test_objectives_know_nothing_of_the_trainer() -> None:
    files = sorted((TRAIN.parent / "objectives").glob("*.py"))
    assert [
        f"{path.name}: {module}" for path in files for module in imports_of(path) if module.startswith(PACKAGE)
    ] == []


def test_no_file_is_named_twice_outside_its_rooms_settings() -> None:
    names = [path.stem for path in TRAIN.rglob("*.py") if path.stem not in ("__init__", "config")]
    twice = {name for name in names if names.count(name) > 1}
    assert twice == set()


@pytest.mark.parametrize("room", sorted(SECTIONS_ALONE))
def test_parts_take_their_own_section(room: str) -> None:
    wrong = [path.name for path in (TRAIN / room).rglob("*.py") if re.search(r"\bRunConfig\b", path.read_text())]
    assert wrong == []
