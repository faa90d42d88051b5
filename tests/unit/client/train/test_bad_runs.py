"""Whole runs over data of which some examples cannot be used."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from preceptor_client.errors import InvalidRequestError, MessageTooLargeError, NotImplementedByServerError
from preceptor_client.train.errors import InvalidDataError, TrainingStoppedError
from preceptor_client.train.record.metrics import read_rows
from preceptor_client.train.rollout.episode import Episode
from preceptor_client.train.run.config import RunConfig
from preceptor_client.train.run.train import train
from preceptor_client.train.start import example_check as start_check
from preceptor_client.types import Chat, Prompt, StudentIds, Text
from safetensors.torch import load_file

from tests.unit.client.train.fake_scorer import FakeScorer
from tests.unit.client.train.runs import Warnings
from tests.unit.client.train.tiny import tiny_student

Settings = dict[str, dict[str, Any]]  # Any: the leaves are whatever TOML holds
NO_SYSTEM = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}hi"
CONVERSATION = [{"role": "system", "content": "brief"}, {"role": "user", "content": "say tan"}]


def _write(settings: Settings, rows: list[dict[str, Any] | str]) -> Path:
    """Texts stand in the file as they are."""
    path = Path(settings["data"]["train"])
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def _rows(number: int = 24) -> list[dict[str, Any] | str]:
    return [{"prompt": f"say {number}", "teacher_prompt": f"please say {number}"} for number in range(number)]


def _refusal(message: str = "the teacher's chat template refuses these messages: no system role") -> Exception:
    return InvalidRequestError(message, field="prompt.chat.messages", reason="INVALID_FIELD")


def _refuse_chats(prompt: Prompt) -> Exception | None:
    return _refusal() if isinstance(prompt, Chat) else None


def _steps(directory: Path) -> list[dict[str, Any]]:
    return [dict(row) for row in read_rows(directory / "metrics.jsonl") if row["kind"] == "step"]


def _listed(directory: Path) -> list[dict[str, Any]]:
    path = directory / "bad_examples.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def _train(settings: Settings, scorer: FakeScorer, *, display: Warnings | None = None, name: str = "run") -> Path:
    """The run's folder."""
    settings["run"]["directory"] = str(Path(settings["run"]["directory"]).with_name(name))
    return train(RunConfig.model_validate(settings), scorer=scorer, display=display).directory


def _are_equal(one: Path, other: Path) -> bool:
    ours, theirs = (load_file(max((run / "checkpoints").iterdir()) / "model.safetensors") for run in (one, other))
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_prompt_that_the_teachers_template_refuses_stops_the_run_before_its_first_step(
    settings: Settings, scorer: FakeScorer
) -> None:
    rows = _rows()
    rows[16] = {"prompt": "say tan", "teacher_prompt": CONVERSATION}
    path = _write(settings, rows)
    scorer.refuses = _refuse_chats
    with pytest.raises(
        InvalidDataError, match=rf"^{path}:17: the teacher refuses it: .*no system role; mend it, or set data\.on_bad_"
    ):
        _train(settings, scorer)
    assert len(scorer.reads) > 16
    assert scorer.calls == []


def test_run_without_its_bad_examples_is_bit_equal_to_one_that_never_had_them(
    settings: Settings, scorer: FakeScorer
) -> None:
    """A line that is torn, a prompt that is too long, and one that the teacher's template refuses."""
    good = _rows()
    bad: list[dict[str, Any] | str] = [
        {"prompt": "a" * 251},
        '{"prompt": ',
        {"prompt": "b", "teacher_prompt": CONVERSATION},
        "caf\xe9",
    ]
    path = _write(settings, [*good[:5], bad[0], *good[5:9], *bad[1:], *good[9:]])
    settings["data"]["on_bad_example"] = "skip"
    scorer.refuses = _refuse_chats
    display = Warnings()
    directory = _train(settings, scorer, display=display)
    assert [(row["of"], row["where"], row["step"]) for row in _listed(directory)] == [
        ("train", f"{path}:{number}", None) for number in (11, 13, 6, 12)
    ]
    assert [text for text in display.texts if "4 bad example(s) left out" in text]
    _write(settings, good)
    settings["data"]["on_bad_example"] = "stop"
    whole = _train(settings, FakeScorer(teacher=tiny_student(seed=1)), name="whole")
    assert _are_equal(directory, whole)


def test_examples_of_which_all_are_bad_are_no_data(settings: Settings, scorer: FakeScorer) -> None:
    settings["data"]["on_bad_example"] = "skip"
    scorer.refuses = lambda prompt: _refusal() if isinstance(prompt, Text) else None
    _write(settings, _rows(3))
    with pytest.raises(InvalidDataError, match=r"data\.train: every example is bad \(listed in "):
        _train(settings, scorer)
    _write(settings, ["{", "{"])
    with pytest.raises(InvalidDataError, match=r"data\.train: every example is bad .*not JSON"):
        _train(settings, scorer, name="torn")


def _refuse_at_steps(prompt: Prompt) -> Exception | None:
    """Ids are read by every teacher: a refusal of what is scored after them is met at a step only."""
    is_refused = isinstance(prompt, StudentIds) and len(prompt.ids) % 2 == 0
    return InvalidRequestError("too many tokens", field="responses", reason="X") if is_refused else None


MIXED: list[dict[str, Any] | str] = [{"prompt": "say " + "x" * number} for number in range(9)]
"""Those at odd places have prompts of an odd number of tokens; the others are refused at their steps."""


def test_refusal_at_a_step_saves_the_run_and_the_setting_lets_it_go_on(settings: Settings, scorer: FakeScorer) -> None:
    path = _write(settings, MIXED)
    num_before = 7
    scorer.refuses = lambda prompt: _refuse_at_steps(prompt) if len(scorer.calls) >= num_before else None
    with pytest.raises(TrainingStoppedError) as caught:
        _train(settings, scorer)
    directory = Path(settings["run"]["directory"])
    message = str(caught.value)
    assert message.startswith(f"{path}:")
    assert "the teacher refuses it: too many tokens; mend it, or set data.on_bad_example=skip" in message
    assert f"Step 2 is saved in {directory}/checkpoints/step-000002" in message
    settings["data"]["on_bad_example"] = "skip"
    _train(settings, scorer)
    rows = _steps(directory)
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    refused = [row["num_refused_groups"] for row in rows]
    assert refused[:2] == [0, 0]
    assert sum(refused) > 0
    assert [row["num_responses"] for row in rows] == [2 * (3 - number) for number in refused]
    assert {row["where"] for row in _listed(directory)} <= {f"{path}:{number}" for number in (1, 3, 5, 7, 9)}


def test_killed_and_resumed_a_run_with_bad_examples_is_bit_equal_to_one_that_was_not(
    settings: Settings, scorer: FakeScorer
) -> None:
    """Killed in step 6, two after a checkpoint. The teacher that it meets afterwards refuses one prompt more when it is
    asked before the next step: the order of the examples must not change."""
    settings["data"]["on_bad_example"] = "skip"
    rows = [*MIXED, '{"prompt": ', {"prompt": "b", "teacher_prompt": CONVERSATION}, {"prompt": "c" * 251}, *_rows(4)]
    _write(settings, rows)

    def refuse(prompt: Prompt) -> Exception | None:
        return _refuse_chats(prompt) or _refuse_at_steps(prompt)

    scorer.refuses = refuse
    whole = _train(settings, scorer, name="whole")
    assert sum(row["num_refused_groups"] for row in _steps(whole)) > 0
    assert [row["step"] for row in _listed(whole)[:3]] == [None] * 3
    killed = FakeScorer(teacher=tiny_student(seed=1), refuses=refuse)
    killed.error_at = lambda index: RuntimeError("killed") if index == 16 else None
    with pytest.raises(RuntimeError, match="killed"):
        _train(settings, killed, name="parts")
    resumed = FakeScorer(teacher=tiny_student(seed=1))
    resumed.refuses = lambda prompt: (
        refuse(prompt) or (_refusal() if prompt == Text("please say 1") and not resumed.calls else None)
    )
    parts = _train(settings, resumed, name="parts")
    assert _are_equal(parts, whole)
    timeless = [
        [{name: value for name, value in row.items() if not name.endswith("seconds")} for row in _steps(run)]
        for run in (whole, parts)
    ]
    assert timeless[0] == timeless[1]
    assert sorted(map(str, _listed(parts))) == sorted(map(str, _listed(whole)))


def test_step_without_a_group_left_is_skipped(settings: Settings, scorer: FakeScorer) -> None:
    _write(settings, MIXED)
    settings["data"]["on_bad_example"] = "skip"
    settings["rollout"]["prompts_per_step"] = 1
    scorer.refuses = _refuse_at_steps
    rows = _steps(_train(settings, scorer))
    skipped = [row for row in rows if row["is_skipped"]]
    assert 0 < len(skipped) < 6
    for row in rows:
        assert row["is_skipped"] is (row["num_refused_groups"] == 1)
        assert (row["loss"] is None) is row["is_skipped"]


def test_too_many_refusals_stop_the_run_and_it_is_saved(settings: Settings, scorer: FakeScorer) -> None:
    _write(settings, MIXED)
    settings["data"] |= {"on_bad_example": "skip", "max_bad_examples": 2}
    settings["rollout"]["prompts_per_step"] = 1
    settings["run"]["num_steps"] = 9
    scorer.refuses = _refuse_at_steps
    with pytest.raises(TrainingStoppedError, match=r"3 examples were left out .*max_bad_examples=2.* is saved in "):
        _train(settings, scorer)
    settings["data"]["max_bad_examples"] = 5
    assert len(_steps(_train(settings, scorer))) == 9


@pytest.mark.parametrize(
    ("error", "is_own"),
    [
        (InvalidRequestError("x", field="prompt.student_ids", reason="UNMAPPED_TOKEN"), True),
        (InvalidRequestError("x", field="responses[1].ids", reason="BEYOND_CONTEXT"), True),
        (InvalidRequestError("x", field="top_k", reason="ANSWER_TOO_LARGE"), True),
        (MessageTooLargeError("x"), True),
        (InvalidRequestError("x", field="top_k", reason="INVALID_FIELD"), False),
        (InvalidRequestError("x", field="teacher", reason="UNKNOWN_TEACHER"), False),
        (InvalidRequestError("x", field="tokenizer_id", reason="UNKNOWN_TOKENIZER"), False),
        (NotImplementedByServerError("x"), False),
    ],
)
def test_only_what_a_group_itself_holds_is_its_own_fault(
    settings: Settings, scorer: FakeScorer, error: Exception, is_own: bool
) -> None:
    settings["data"]["on_bad_example"] = "skip"
    scorer.error_at = lambda index: error if index == 4 else None
    if is_own:
        assert sum(row["num_refused_groups"] for row in _steps(_train(settings, scorer))) == 1
        return
    with pytest.raises(type(error), match="x"):
        _train(settings, scorer)


def test_held_out_example_that_the_teacher_refuses_is_left_out_of_the_loss(
    settings: Settings, scorer: FakeScorer, tmp_path: Path
) -> None:
    heldout = tmp_path / "heldout.jsonl"
    heldout.write_text("".join(json.dumps(row) + "\n" for row in MIXED[1:4]))
    settings["data"] |= {"heldout": str(heldout), "on_bad_example": "skip"}
    settings["evaluation"]["loss"] = True
    settings["rollout"]["prompts_per_step"] = 1
    scorer.refuses = _refuse_at_steps
    _write(settings, MIXED[1::2])
    directory = _train(settings, scorer)
    rows = [row for row in read_rows(directory / "metrics.jsonl") if row["kind"] == "heldout"]
    assert [row["num_refused_groups"] for row in rows] == [1, 1]
    assert all(isinstance(row["loss"], float) for row in rows)
    assert [(row["of"], row["where"], row["step"]) for row in _listed(directory)] == [("heldout", f"{heldout}:2", 0)]


def test_student_whose_template_refuses_is_told_for_training_and_held_out_examples_alike(
    settings: Settings, scorer: FakeScorer, tmp_path: Path
) -> None:
    student = Path(settings["student"]["model"])
    (student / "chat_template.jinja").write_text(NO_SYSTEM)
    path = _write(settings, [{"prompt": "a"}, {"prompt": CONVERSATION}])
    with pytest.raises(InvalidDataError, match=rf"^{path}:2: the student's chat template refuses .*no system role"):
        _train(settings, scorer)
    _write(settings, [{"prompt": "a"}])
    heldout = tmp_path / "heldout.jsonl"
    heldout.write_text(json.dumps({"prompt": CONVERSATION, "answer": "tan"}) + "\n")
    settings["data"]["heldout"] = str(heldout)
    with pytest.raises(InvalidDataError, match=rf"^{heldout}:1: the student's chat template refuses .*no system role"):
        _train(settings, scorer)


def test_students_template_is_not_asked_about_what_the_teacher_reads(settings: Settings, scorer: FakeScorer) -> None:
    student = Path(settings["student"]["model"])
    (student / "chat_template.jinja").write_text(NO_SYSTEM)
    _write(settings, [{"prompt": "a", "teacher_prompt": CONVERSATION}])
    assert len(_steps(_train(settings, scorer))) == 6


def test_of_very_many_examples_a_sample_is_checked_and_the_rest_at_their_steps(
    settings: Settings, scorer: FakeScorer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(start_check, "MAX_CHECKED_EXAMPLES", 4)
    student = Path(settings["student"]["model"])
    (student / "chat_template.jinja").write_text(NO_SYSTEM)
    rows = _rows(12)
    rows[3] = rows[7] = {"prompt": CONVERSATION}
    path = _write(settings, rows)
    settings["data"]["on_bad_example"] = "skip"
    display = Warnings()
    directory = _train(settings, scorer, display=display)
    assert [text for text in display.texts if "data.train: 4 of 12 examples were checked" in text]
    assert len(scorer.reads) <= 4
    assert {row["where"] for row in _listed(directory)} == {f"{path}:4", f"{path}:8"}
    assert any(row["step"] is not None for row in _listed(directory))
    told = [text for text in display.texts if "goes on without" in text]
    assert len(told) == sum(row["step"] is not None for row in _listed(directory))


def test_extra_fields_are_ignored_under_the_setting(settings: Settings, scorer: FakeScorer) -> None:
    _write(settings, [{"id": 1, "prompt": "a"}])
    with pytest.raises(InvalidDataError, match=r"unknown key 'id'.*data\.extra_fields=ignore"):
        _train(settings, scorer)
    settings["data"]["extra_fields"] = "ignore"
    assert len(_steps(_train(settings, scorer))) == 6


class RefusesHeldout:
    """A reward that lacks what it needs for the held-out examples."""

    def reward(self, episode: Episode, text: str) -> float:
        return float(len(text) > len(episode.example.extra["rubric"]))


def test_failed_held_out_episodes_are_told(settings: Settings, scorer: FakeScorer, tmp_path: Path) -> None:
    _write(settings, [{"prompt": f"say {number}", "rubric": "abc"} for number in range(4)])
    (tmp_path / "heldout.jsonl").write_text('{"prompt": "say tan"}\n{"prompt": "say lime", "rubric": ""}\n')
    settings["data"] |= {"heldout": str(tmp_path / "heldout.jsonl"), "extra_fields": "keep"}
    settings["rewards"] = [{"kind": f"{__name__}:RefusesHeldout"}]  # type: ignore[assignment]  # a list of tables
    display = Warnings()
    _train(settings, scorer, display=display)
    told = [text for text in display.texts if "1 held-out episode(s) failed" in text]
    assert [text.split(":")[0] for text in told] == ["step 0", "step 6"]
