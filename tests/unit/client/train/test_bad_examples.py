"""Which examples a run goes without: by policy, up to a limit, and the same ones after a resume."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from preceptor_client.train.data.bad_examples import BadExamples
from preceptor_client.train.data.examples import Example
from preceptor_client.train.errors import InvalidDataError, RunDirectoryError

EXAMPLES = [Example(index=index, where=f"t:{index}", prompt="a") for index in range(4)]


def _error(index: int, why: str = "no") -> InvalidDataError:
    return InvalidDataError(why, where=f"t:{index}")


def _rows(directory: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (directory / "bad_examples.jsonl").read_text().splitlines()]


def test_stop_names_the_setting_that_goes_on_without_the_example(tmp_path: Path) -> None:
    bad = BadExamples(directory=tmp_path)
    with pytest.raises(InvalidDataError, match=r"^t:1: no; mend it, or set data\.on_bad_example=skip"):
        bad.leave_out(_error(1), of="train")
    with pytest.raises(InvalidDataError, match=r"^t:1: no; .*data\.on_bad_example=skip"):
        bad.skip(_error(1), of="train", step=3)
    assert not (tmp_path / "bad_examples.jsonl").exists()


def test_skipped_examples_are_listed_once_told_and_counted_per_step(tmp_path: Path) -> None:
    told: list[str] = []
    bad = BadExamples(policy="skip", limit=9, directory=tmp_path, tell=told.append)
    bad.leave_out(_error(1, "torn"), of="train")
    assert [example.index for example in bad.left(EXAMPLES, of="train")] == [0, 2, 3]
    step = bad.at_step(5, of="train")
    step(_error(2, "refused"))
    step(_error(2, "refused"))
    again = bad.at_step(7, of="train")
    again(_error(2, "refused"))
    assert (step.num_skipped, again.num_skipped) == (2, 1)
    assert told == ["step 5 goes on without t:2: refused"]
    assert _rows(tmp_path) == [
        {"of": "train", "where": "t:1", "why": "torn", "step": None},
        {"of": "train", "where": "t:2", "why": "refused", "step": 5},
    ]
    assert bad.warnings() == (
        f"1 bad example(s) left out (listed in {tmp_path}/bad_examples.jsonl); the first: t:1: torn",
    )


def test_source_as_a_whole_is_never_skipped() -> None:
    with pytest.raises(InvalidDataError, match="no such file"):
        BadExamples(policy="skip", limit=9).leave_out(InvalidDataError("a: no such file"), of="train")


def test_limit_covers_what_was_found_before_and_at_steps(tmp_path: Path) -> None:
    bad = BadExamples(policy="skip", limit=1, directory=tmp_path)
    bad.leave_out(_error(0), of="train")
    bad.left(EXAMPLES, of="train")
    with pytest.raises(InvalidDataError, match=r"2 examples were left out .*, more than data\.max_bad_examples=1: "):
        bad.skip(_error(1), of="train", step=1)
    more = BadExamples(policy="skip", limit=1)
    for index in range(2):
        more.leave_out(_error(index), of="train")
    with pytest.raises(InvalidDataError, match=r"more than data\.max_bad_examples=1"):
        more.left(EXAMPLES, of="train")


def test_data_without_a_good_example_is_refused_before_and_during_a_run() -> None:
    bad = BadExamples(policy="skip", limit=9)
    for index in range(3):
        bad.leave_out(_error(index), of="train")
    assert len(bad.left(EXAMPLES, of="train")) == 1
    with pytest.raises(InvalidDataError, match=r"data\.train: every example is bad; the first: t:0: no"):
        bad.skip(_error(3), of="train", step=1)
    with pytest.raises(InvalidDataError, match="every example is bad"):
        bad.left(EXAMPLES[:3], of="train")


def test_one_source_does_not_speak_for_another() -> None:
    bad = BadExamples(policy="skip", limit=9)
    bad.leave_out(_error(1), of="train")
    assert bad.left(EXAMPLES, of="heldout") == EXAMPLES


def test_resumed_run_takes_out_what_it_took_out_and_nothing_else(tmp_path: Path) -> None:
    first = BadExamples(policy="skip", limit=9, directory=tmp_path)
    first.leave_out(_error(1), of="train")
    first.skip(_error(2), of="train", step=4)
    with (tmp_path / "bad_examples.jsonl").open("a") as file:
        file.write('{"of": "train", "wh')  # what a kill leaves
    second = BadExamples(policy="skip", limit=9, directory=tmp_path, is_resumed=True)
    second.leave_out(_error(1), of="train")
    second.leave_out_unless_settled(_error(3), of="train")  # by another teacher, say
    assert [example.index for example in second.left(EXAMPLES, of="train")] == [0, 2, 3]
    second.skip(_error(3), of="train", step=6)
    assert [row["where"] for row in _rows(tmp_path)] == ["t:1", "t:2", "t:3"]
    with pytest.raises(InvalidDataError, match="it was not so when this run began: restore the file"):
        second.leave_out(_error(0), of="train")


def test_resumed_run_cannot_take_back_what_it_left_out(tmp_path: Path) -> None:
    first = BadExamples(policy="skip", limit=9, directory=tmp_path)
    first.skip(_error(2), of="train", step=4)
    BadExamples(directory=tmp_path, is_resumed=True)
    first.leave_out(_error(1), of="train")
    with pytest.raises(RunDirectoryError, match=r"set data\.on_bad_example=skip, or choose another run\.directory"):
        BadExamples(directory=tmp_path, is_resumed=True)


def test_run_that_begins_anew_forgets_an_attempt_without_a_checkpoint(tmp_path: Path) -> None:
    BadExamples(policy="skip", limit=9, directory=tmp_path).leave_out(_error(1), of="train")
    assert BadExamples(policy="skip", limit=9, directory=tmp_path).left(EXAMPLES, of="train") == EXAMPLES
