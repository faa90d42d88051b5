"""Whole runs whose teacher fails on some groups, and runs that end for other reasons: nothing done is lost."""

# T = tokens of a response, V = vocabulary, K = support size

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from preceptor.wire import PositionStatus
from preceptor_client.errors import CorruptAnswerError, GroupFailedError
from preceptor_client.train.errors import TrainingStoppedError
from preceptor_client.train.record.metrics import read_rows
from preceptor_client.train.record.summary import RunSummary
from preceptor_client.train.run.config import RunConfig
from preceptor_client.train.run.hooks import StepDone
from preceptor_client.train.run.train import train
from preceptor_client.types import Prompt, StudentIds
from safetensors.torch import load_file

from tests.unit.client.train.fake_scorer import FakeScorer
from tests.unit.client.train.runs import Settings, Warnings
from tests.unit.client.train.tiny import tiny_student

NUM_PROMPTS = 3
"""Of a step."""
FAILURE = GroupFailedError("teacher a:1: INTERNAL: the model raised", reason="BAD_GROUP", incident="7f3a")
Fails = Callable[[Prompt], Exception | None]


def _teacher(refuses: Fails = lambda prompt: None) -> FakeScorer:
    return FakeScorer(teacher=tiny_student(seed=1), refuses=refuses)


def _on(word: str) -> Fails:
    """Fails on the prompt that ends in this word, at every step that it is dealt to."""
    student = tiny_student(seed=1)
    marked = tuple(student.encode_prompt(f"say {word}"))

    def fails(prompt: Prompt) -> Exception | None:
        return FAILURE if isinstance(prompt, StudentIds) and tuple(prompt.ids) == marked else None

    return fails


def _train(settings: Settings, scorer: FakeScorer, *, name: str, display: Warnings | None = None) -> RunSummary:
    settings["run"]["directory"] = str(Path(settings["run"]["directory"]).with_name(name))
    return train(RunConfig.model_validate(settings), scorer=scorer, display=display)


def _steps(directory: Path) -> list[dict[str, Any]]:  # Any: as in the file
    rows = [dict(row) for row in read_rows(directory / "metrics.jsonl") if row["kind"] == "step"]
    return [{name: value for name, value in row.items() if not name.endswith("seconds")} for row in rows]


def _weights(directory: Path) -> dict[str, torch.Tensor]:
    return load_file(max((directory / "checkpoints").iterdir()) / "model.safetensors")


def _are_equal(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> bool:
    return ours.keys() == theirs.keys() and all(torch.equal(one, theirs[name]) for name, one in ours.items())


KEPT: list[StepDone] = []


class Keeps:
    """A hook that keeps what a step was trained on."""

    def on_step(self, done: StepDone) -> None:
        KEPT.append(done)


def _dense_losses(prompt: tuple[int, ...], response: tuple[int, ...]) -> list[float]:
    """The untrained student against the teacher in float64: renormalised inside the teacher's top 8."""
    ids = torch.tensor([[*prompt, *response]])
    with torch.no_grad():
        ours_TV, theirs_TV = (
            torch.log_softmax(tiny_student(seed=seed).model(ids).logits[0, len(prompt) - 1 : -1].double(), dim=1)
            for seed in (0, 1)
        )
    top = theirs_TV.topk(8, dim=1)
    log_p_TK = torch.log_softmax(ours_TV.gather(1, top.indices), dim=1)
    losses: list[float] = (log_p_TK.exp() * (log_p_TK - torch.log_softmax(top.values, dim=1))).sum(1).tolist()
    return losses


def test_loss_of_a_step_with_a_failed_group_is_that_of_the_other_groups(settings: Settings) -> None:
    """All of a step's episodes from a run in which nothing fails; then the dense loss of those that are left."""
    settings["hooks"] = [{"kind": f"{__name__}:Keeps"}]  # type: ignore[assignment]  # a list of tables
    settings["run"] |= {"num_steps": 1, "seed": 3}
    KEPT.clear()
    _train(settings, _teacher(), name="whole")
    (whole,) = KEPT
    episodes = [one.episode for one in whole.scored]
    assert sorted({one.slot for one in episodes}) == [0, 1, 2]
    losses: dict[int, list[float]] = {slot: [] for slot in range(NUM_PROMPTS)}
    for one in episodes:
        losses[one.slot] += _dense_losses(one.prompt_ids, one.response_ids)
    scorer = _teacher()
    scorer.error_at = {1: FAILURE}.get
    summary = _train(settings, scorer, name="failing")
    (row,) = _steps(summary.directory)
    assert row["failed_groups"] == summary.failed_groups == 1
    assert row["num_responses"] == 4
    assert row["num_positions"] == len(losses[0]) + len(losses[2])
    # fp32 through two layers.
    assert row["loss"] == pytest.approx(np.mean(losses[0] + losses[2]), rel=1e-4)
    assert abs(row["loss"] - np.mean(losses[0] + losses[1] + losses[2])) > 1e-3 * row["loss"]


def test_failed_group_is_named_in_log_and_display_and_counted_in_report_and_summary(settings: Settings) -> None:
    display = Warnings()
    summary = _train(settings, _teacher(_on("blue")), name="run", display=display)
    rows = _steps(summary.directory)
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    total = sum(row["failed_groups"] for row in rows)
    assert 0 < total < 5
    assert summary.failed_groups == total
    where = f"{settings['data']['train']}:3"
    log = (summary.directory / "train.log").read_text()
    assert log.count(f"example={where} teacher=teacher reason=BAD_GROUP incident='7f3a'") == total
    told = [text for text in display.texts if "goes on without 1 group(s); the first: " in text]
    assert len(told) == total
    assert all(f"{where}: teacher 'teacher' failed on its group: {FAILURE}" in text for text in told)
    assert f"<b>{total}</b><span>groups failed at the teacher" in (summary.directory / "report.html").read_text()


def test_steps_of_which_every_group_failed_do_not_move_the_student(settings: Settings) -> None:
    settings["run"] |= {"num_steps": 4, "max_failed_share": 1.0}
    scorer = _teacher()
    scorer.error_at = lambda index: FAILURE if index >= NUM_PROMPTS else None
    directory = _train(settings, scorer, name="failing").directory
    rows = _steps(directory)
    assert [row["failed_groups"] for row in rows] == [0, 3, 3, 3]
    assert [row["is_skipped"] for row in rows] == [False, True, True, True]
    assert [row["loss"] for row in rows[1:]] == [None] * 3
    settings["run"]["num_steps"] = 1
    assert _are_equal(_weights(directory), _weights(_train(settings, _teacher(), name="one").directory))


@pytest.mark.parametrize(
    ("max_share", "num_done", "share"),
    [
        (None, 3, "5 of the last 12 group(s), more than run.max_failed_share=0.05"),
        (0.5, 4, "8 of the last 15 group(s), more than run.max_failed_share=0.5"),
        (0.0, 2, "2 of the last 9 group(s), more than run.max_failed_share=0.0"),
    ],
)
def test_too_many_failed_groups_stop_the_run_and_a_mended_teacher_loses_nothing(
    settings: Settings, max_share: float | None, num_done: int, share: str
) -> None:
    """The teacher fails on every group from the eighth on: two of the third step's three, and all of the later ones."""
    settings["run"] |= {"num_steps": 8, "checkpoint_every_steps": 50, "max_failed_share": max_share}
    whole = _train(settings, _teacher(), name="whole").directory
    scorer = _teacher()
    scorer.error_at = lambda index: FAILURE if index >= 7 else None
    with pytest.raises(TrainingStoppedError) as caught:
        _train(settings, scorer, name="stopped")
    directory = Path(settings["run"]["directory"])
    message = str(caught.value)
    assert share in message
    assert f"failed on its group: {FAILURE}" in message
    assert f"Step {num_done} is saved in {directory}/checkpoints/step-00000{num_done}; the same command" in message
    assert [row["step"] for row in _steps(directory)] == list(range(1, num_done + 1))
    if max_share == 0.0:  # so that no step was done without its failed groups
        resumed = _train(settings, _teacher(), name="stopped").directory
        assert _are_equal(_weights(resumed), _weights(whole))
        assert _steps(resumed) == _steps(whole)


def test_killed_and_resumed_a_run_with_failed_groups_ends_as_one_that_was_not(settings: Settings) -> None:
    """Each step has three of five prompts: the limit is passed at some step, and not by what came after a resume."""
    settings["run"] |= {"num_steps": 24, "checkpoint_every_steps": 2, "max_failed_share": 0.1}
    with pytest.raises(TrainingStoppedError) as whole:
        _train(settings, _teacher(_on("blue")), name="whole")
    num_done = len(_steps(Path(settings["run"]["directory"])))
    assert num_done >= 5
    killed = _teacher(_on("blue"))
    killed.error_at = lambda index: RuntimeError("killed") if index == NUM_PROMPTS * 5 - 1 else None
    with pytest.raises(RuntimeError, match="killed"):
        _train(settings, killed, name="parts")
    with pytest.raises(TrainingStoppedError) as parts:
        _train(settings, _teacher(_on("blue")), name="parts")
    directories = [Path(settings["run"]["directory"]).with_name(name) for name in ("whole", "parts")]
    assert str(parts.value) == str(whole.value).replace("/whole/", "/parts/")
    assert _steps(directories[0]) == _steps(directories[1])
    assert _are_equal(*(_weights(directory) for directory in directories))


def test_failed_held_out_group_is_counted_and_left_out_of_the_loss(settings: Settings, tmp_path: Path) -> None:
    heldout = tmp_path / "heldout.jsonl"
    lines = [json.dumps({"prompt": f"say {word}"}) + "\n" for word in ("tan", "teal", "lime", "gold", "navy", "rose")]
    heldout.write_text("".join(lines))
    settings["data"]["heldout"] = str(heldout)
    settings["evaluation"]["loss"] = True
    settings["run"]["num_steps"] = 1
    scorer = _teacher(_on("teal"))
    directory = _train(settings, scorer, name="failing").directory
    log = (directory / "train.log").read_text()
    assert f"held-out group failed: step=0 example={heldout}:2 teacher=teacher reason=BAD_GROUP incident='7f3a'" in log
    heldout.write_text("".join([lines[0], *lines[2:]]))
    whole = _train(settings, _teacher(), name="absent").directory
    rows = [[row for row in read_rows(run / "metrics.jsonl") if row["kind"] == "heldout"] for run in (directory, whole)]
    assert [[row["failed_groups"] for row in of_run] for of_run in rows] == [[1, 1], [0, 0]]
    # The answers are drawn by the example's place, so that the two runs measure other texts: the oracle is dense.
    texts = [one for one in scorer.calls if str(one.options["request_id"]).startswith("heldout-0/")]
    assert len(texts) == 6
    losses = [
        loss
        for call in texts
        if isinstance(call.prompt, StudentIds) and _on("teal")(call.prompt) is None
        for loss in _dense_losses(tuple(call.prompt.ids), tuple(call.responses[0]))
    ]
    assert rows[0][0]["num_positions"] == len(losses)
    assert rows[0][0]["loss"] == pytest.approx(np.mean(losses), rel=1e-4)
    settings["run"]["max_failed_share"] = 0.0
    heldout.write_text("".join(lines))
    with pytest.raises(TrainingStoppedError, match=r"examples after step 0: teachers failed on 1 of the last 6"):
        _train(settings, _teacher(_on("teal")), name="stopped")


def test_error_that_nobody_foresaw_of_a_teacher_saves_the_steps_before_it(settings: Settings) -> None:
    settings["run"]["checkpoint_every_steps"] = 50
    whole = _train(settings, _teacher(), name="whole").directory
    scorer, display = _teacher(), Warnings()
    scorer.error_at = {7: CorruptAnswerError("digest is wrong")}.get
    with pytest.raises(CorruptAnswerError, match="digest is wrong"):
        _train(settings, scorer, name="broken", display=display)
    directory = Path(settings["run"]["directory"])
    folder = directory / "checkpoints" / "step-000002"
    assert folder.is_dir()
    assert f"step 2 is saved in {folder}; the same command continues from there" in display.texts
    resumed = _train(settings, _teacher(), name="broken").directory
    assert _are_equal(_weights(resumed), _weights(whole))
    assert _steps(resumed) == _steps(whole)


def test_non_finite_positions_save_the_steps_before_them(settings: Settings) -> None:
    settings["run"]["checkpoint_every_steps"] = 50
    scorer = _teacher()
    scorer.status_of = lambda position: (
        PositionStatus.NON_FINITE if len(scorer.calls) > 2 * NUM_PROMPTS else PositionStatus.OK
    )
    with pytest.raises(TrainingStoppedError, match=r"run\.max_non_finite_share=0\.1.*\. Step 2 is saved in "):
        _train(settings, scorer, name="nan")


class BlocksTheDisk:
    """A hook that stands in for a full disk after the steps 3 and 4: a file is where a checkpoint would be written."""

    def on_step(self, done: StepDone) -> None:
        block = done.directory / "checkpoints" / ".writing-block"
        if done.step == 3:
            block.parent.mkdir()
            block.write_text("")
        elif done.step == 5:
            block.unlink()


def test_checkpoint_that_cannot_be_written_costs_no_step_and_is_written_once_it_can(settings: Settings) -> None:
    settings["hooks"] = [{"kind": f"{__name__}:BlocksTheDisk"}]  # type: ignore[assignment]  # a list of tables
    settings["run"]["keep_checkpoints"] = 9
    display = Warnings()
    directory = _train(settings, _teacher(), name="run", display=display).directory
    assert [path.name for path in sorted((directory / "checkpoints").iterdir())] == ["step-000005", "step-000006"]
    told = [text for text in display.texts if "is not saved, and the run goes on: run.directory: " in text]
    assert [text.split(" ")[1] for text in told] == ["3", "4"]
    assert all("the same command starts the run again" in text for text in told)
    assert len(_steps(directory)) == 6


class BlocksTheDiskForEver(BlocksTheDisk):
    """And one that stays full."""

    def on_step(self, done: StepDone) -> None:
        if done.step == 3:
            super().on_step(done)


def test_last_checkpoint_that_cannot_be_written_is_told_in_a_sentence(settings: Settings) -> None:
    settings["hooks"] = [{"kind": f"{__name__}:BlocksTheDiskForEver"}]  # type: ignore[assignment]  # a list of tables
    with pytest.raises(TrainingStoppedError, match=r"^run\.directory: .* cannot be written to \(.*: once it can, "):
        _train(settings, _teacher(), name="run")
