"""docs/architecture.md against the code: its floors, what passes between them, and the files of a step."""

from __future__ import annotations

import dataclasses
import importlib
import re
from pathlib import Path

import pytest

from tests.unit.client.train.test_rooms import GROUND, PACKAGE, ROOMS, TRAIN, imports_of, room_of

PAGE_PATH = Path(__file__).parents[4] / "docs/architecture.md"
PAGE = PAGE_PATH.read_text(encoding="utf-8")
MAX_LINES = 400
NUM_FILES_OF_A_STEP = 8


def floors() -> list[list[str]]:
    """From the roof down."""
    [house, *_] = re.findall(r"```text\n(.*?)```", PAGE, re.DOTALL)
    drawn = [re.split(r"\s{3,}", line.strip())[0] for line in house.splitlines()]
    return [[room.strip() for room in line.split("|")] for line in drawn]


def items() -> list[tuple[Path, str]]:
    """The numbered files of a step, with what is said of each."""
    found = re.findall(r"^(\d)\. \[`([\w/.]+)`\]\((.*?)\): (.*?)(?=^\d\. |^## |\Z)", PAGE, re.MULTILINE | re.DOTALL)
    assert [int(number) for number, *_ in found] == list(range(1, len(found) + 1))
    assert all(target.endswith(shown) for _, shown, target, _ in found)
    return [((PAGE_PATH.parent / target).resolve(), text) for _, _, target, text in found]


def test_the_rooms_drawn_are_those_of_the_house() -> None:
    *above, ground = floors()
    drawn = [room for floor in reversed(above) for room in floor]
    assert sorted(drawn) == sorted(ROOMS)
    assert sorted(ground) == sorted(GROUND)


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_from_the_floors_below_it_alone(room: str) -> None:
    drawn = floors()
    [own] = [number for number, floor in enumerate(drawn) if room in floor]
    below = {name for floor in drawn[own + 1 :] for name in floor}
    imported = {
        room_of(module)
        for path in (TRAIN / room).rglob("*.py")
        for module in imports_of(path)
        if module.startswith(f"{PACKAGE}.")
    }
    assert imported - below <= {room}


def test_a_step_is_read_in_eight_files_and_what_is_said_of_them_is_in_them() -> None:
    listed = items()
    assert len(listed) == len(set(listed)) == NUM_FILES_OF_A_STEP
    for path, text in listed:
        code = path.read_text()
        names = [name for name in re.findall(r"`([\w.]+)`", text) if name != "Episode"]
        assert names, path
        assert [name for name in names if name.rpartition(".")[2] not in code] == []


def test_the_files_of_a_step_call_each_other_by_these_names() -> None:
    code = {path.stem: path.read_text() for path, _ in items()}
    for file, call in (
        ("trainer", "task.roller.roll_out("),
        ("trainer", "task.scoring.submit("),
        ("trainer", "task.scoring.gather("),
        ("trainer", "self.learner.step("),
        ("scoring", "self._questions.gather("),
        ("learner", "loss_of.of("),
        ("loss", "self._student.module("),
        ("loss", "self._objective.loss("),
    ):
        assert call in code[file]


def test_each_arrow_is_a_frozen_dataclass_that_stands_where_the_page_says() -> None:
    [_, arrows, *_] = re.findall(r"```text\n(.*?)```", PAGE, re.DOTALL)
    rows = re.findall(r"^\| `(\w+)` \| `([\w/.]+)\.py` \|", PAGE, re.MULTILINE)
    assert [name for name, _ in rows] == arrows.split()[::2]
    for name, place in rows:
        module = place.removeprefix("../").replace("/", ".")
        package = "preceptor_client" if place.startswith("../") else PACKAGE
        found = getattr(importlib.import_module(f"{package}.{module}"), name)
        assert dataclasses.is_dataclass(found)
        assert vars(found)["__dataclass_params__"].frozen, name


def test_the_table_of_lines_names_every_room_and_adds_up() -> None:
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in PAGE.partition("| room | files before")[2].splitlines()[2:]
        if line.startswith("|")
    ]
    assert [row[0] for row in rows] == ["in no room", "head", *ROOMS, "all"]
    for column in range(1, 5):
        *numbers, total = (0 if row[column] == "-" else int(row[column]) for row in rows)
        assert sum(numbers) == total


def test_no_file_of_the_trainer_is_longer_than_the_page_says() -> None:
    long = {path.name for path in TRAIN.rglob("*.py") if len(path.read_text().splitlines()) > MAX_LINES}
    assert long == set()
