from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from preceptor.wire import PositionStatus, SegmentationPolicy
from preceptor_client.errors import TeacherUnavailableError
from preceptor_client.train.data.examples import Example
from preceptor_client.train.errors import RunDirectoryError, TrainingStoppedError
from preceptor_client.train.record.metrics import MetricRow, read_rows
from preceptor_client.train.run.trainer import Trainer

from tests.unit.client.train.fake_scorer import FakeScorer
from tests.unit.client.train.runs import Runs, Warnings

Settings = dict[str, dict[str, Any]]  # Any: the leaves are whatever TOML holds


HELDOUT = [Example(index=9, prompt="say tan", answer="tan")]
UNANSWERED = [Example(index=index, prompt=f"say {word}") for index, word in enumerate(("tan", "teal", "lime"))]


@pytest.fixture
def runs(settings: Settings, scorer: FakeScorer) -> Iterator[Runs]:
    runs = Runs(settings, scorer)
    yield runs
    runs.close()


def _weights(trainer: Trainer) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in trainer.student.model.parameters()]


def _are_equal(ours: list[torch.Tensor], theirs: list[torch.Tensor]) -> bool:
    return all(torch.equal(one, other) for one, other in zip(ours, theirs, strict=True))


def _steps(trainer: Trainer) -> list[MetricRow]:
    return [row for row in trainer.metrics.rows if row["kind"] == "step"]


def _timeless(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:  # Any: as in the file
    return [{name: value for name, value in row.items() if not name.endswith("seconds")} for row in rows]


def test_loss_falls(runs: Runs, settings: Settings) -> None:
    settings["optimizer"]["learning_rate"] = 1e-2
    trainer = runs.trainer(num_steps=24)
    trainer.run()
    losses = [float(str(row["loss"])) for row in _steps(trainer)]
    assert sum(losses[-3:]) < 0.7 * sum(losses[:3])


def test_resumed_run_is_bit_equal_to_one_that_was_not_stopped(runs: Runs, settings: Settings) -> None:
    whole = runs.trainer(name="whole")
    whole.run()
    first = runs.trainer(name="parts")
    for _ in range(5):
        first.train_step()
        if first.step == 3:
            first.save()
    # Steps 4 and 5 were not saved: they are done again, with the same result.
    second = runs.trainer(name="parts")
    assert second.step == 3
    assert not _are_equal(_weights(second), _weights(first))
    second.run()
    assert _are_equal(_weights(second), _weights(whole))
    files = [Path(settings["run"]["directory"]).parent / name / "metrics.jsonl" for name in ("whole", "parts")]
    assert _timeless(read_rows(files[1])) == _timeless(read_rows(files[0]))


def test_outage_saves_and_the_run_continues_as_if_nothing_had_happened(runs: Runs, scorer: FakeScorer) -> None:
    whole = runs.trainer(name="whole")
    whole.run()
    scorer.calls.clear()
    # Three prompts a step: the second group of the third step fails.
    scorer.error_at = lambda index: TeacherUnavailableError("connection refused") if index == 7 else None
    with pytest.raises(TrainingStoppedError, match=r"127\.0\.0\.1:1 for 60 s .* Step 2 is saved in .*step-000002"):
        runs.trainer(name="broken", checkpoint_every_steps=50).run()
    scorer.error_at = lambda index: None
    resumed = runs.trainer(name="broken", checkpoint_every_steps=50)
    resumed.run()
    assert _are_equal(_weights(resumed), _weights(whole))
    assert [row["step"] for row in _steps(resumed)] == [1, 2, 3, 4, 5, 6]


def test_row_of_a_step_counts_what_happened(runs: Runs, scorer: FakeScorer) -> None:
    scorer.status_of = lambda position: PositionStatus.EXCLUDED if position == 0 else PositionStatus.OK
    row = runs.trainer().train_step()
    assert row["kind"] == "step"
    assert row["num_responses"] == row["num_excluded"] == 6
    assert row["num_positions"] == row["num_ok"]
    assert isinstance(row["num_ok"], int)
    assert isinstance(row["mean_response_length"], float)
    assert row["num_ok"] + 6 == pytest.approx(6 * row["mean_response_length"])
    for name in ("teacher_mass", "student_mass", "outside_share", "truncated_share"):
        value = row[name]
        assert isinstance(value, float)
        assert 0 <= value <= 1, name


def test_entropy_that_the_teacher_does_not_compute_is_null_in_the_row(runs: Runs, scorer: FakeScorer) -> None:
    scorer.computes_entropies = False
    row = runs.trainer().train_step()
    assert row["teacher_entropy"] is None
    assert isinstance(row["student_entropy"], float)


def test_other_weights_of_the_teacher_are_logged_once_and_stand_in_the_row(
    runs: Runs, scorer: FakeScorer, caplog: pytest.LogCaptureFixture
) -> None:
    # Three prompts a step: the second step's first group is the last that the old weights scored.
    scorer.revision_at = lambda number: "1" if number <= 4 else "2"
    trainer = runs.trainer(num_steps=3)
    with caplog.at_level("WARNING"):
        rows = [trainer.train_step() for _ in range(3)]
    assert [row["teacher_revision"] for row in rows] == ["1", "1, 2", "2"]
    told = [record.message for record in caplog.records if "other weights" in record.message]
    assert told == ["teacher has other weights: step=2 revision=2 previous_revision=1"]


def test_step_that_is_masked_whole_is_skipped_and_counted(runs: Runs, scorer: FakeScorer) -> None:
    scorer.status_of = lambda position: PositionStatus.SPECIAL
    trainer = runs.trainer(num_steps=2)
    before = _weights(trainer)
    trainer.run()
    assert [row["is_skipped"] for row in _steps(trainer)] == [True, True]
    assert _are_equal(_weights(trainer), before)


def test_too_many_non_finite_positions_stop_the_run(runs: Runs, scorer: FakeScorer) -> None:
    scorer.status_of = lambda position: PositionStatus.NON_FINITE if position == 0 else PositionStatus.OK
    trainer = runs.trainer()
    before = _weights(trainer)
    with pytest.raises(TrainingStoppedError, match=r"NaN or infinity, more than run\.max_non_finite_share=0\.1"):
        trainer.train_step()
    assert _are_equal(_weights(trainer), before)
    runs.trainer(max_non_finite_share=0.9).train_step()


def test_heldout_is_measured_once_before_when_due_and_after(runs: Runs, settings: Settings) -> None:
    settings["data"]["heldout"] = "unused.jsonl"
    settings["evaluation"]["every_steps"] = 2
    trainer = runs.trainer(heldout=HELDOUT, num_steps=4)
    trainer.run()
    measured = [row["step"] for row in trainer.metrics.rows if row["kind"] == "heldout"]
    assert measured == [0, 2, 4]
    again = runs.trainer(heldout=HELDOUT, num_steps=4)
    again.run()
    assert again.metrics.rows == trainer.metrics.rows


def test_heldout_loss_without_answers_is_measured_before_when_due_and_after_and_never_twice(
    runs: Runs, settings: Settings, scorer: FakeScorer
) -> None:
    settings["data"]["heldout"] = "unused.jsonl"
    settings["evaluation"] |= {"every_steps": 2, "loss": True}
    trainer = runs.trainer(heldout=UNANSWERED, num_steps=4)
    trainer.run()
    measured = [row for row in trainer.metrics.rows if row["kind"] == "heldout"]
    assert [row["step"] for row in measured] == [0, 2, 4]
    for row in measured:
        assert isinstance(row["loss"], float)
        assert row["loss"] > 0
        assert row["scored_share"] == 1.0
        assert not {"accuracy", "num_correct", "mean_answer_length", "answers"} & row.keys()
    num_calls = len(scorer.calls)
    again = runs.trainer(heldout=UNANSWERED, num_steps=4)
    again.run()
    assert again.metrics.rows == trainer.metrics.rows
    assert len(scorer.calls) == num_calls


def test_heldout_loss_changes_no_step(runs: Runs, settings: Settings) -> None:
    plain = runs.trainer(name="plain", num_steps=3)
    plain.run()
    settings["data"]["heldout"] = "unused.jsonl"
    settings["evaluation"] |= {"every_steps": 1, "loss": True}
    measured = runs.trainer(name="measured", heldout=UNANSWERED, num_steps=3)
    measured.run()
    assert _are_equal(_weights(measured), _weights(plain))


def test_outage_during_a_measurement_saves_and_the_run_continues(
    runs: Runs, settings: Settings, scorer: FakeScorer
) -> None:
    settings["data"]["heldout"] = "unused.jsonl"
    settings["evaluation"]["loss"] = True
    scorer.error_at = lambda index: TeacherUnavailableError("gone") if index == 1 else None
    with pytest.raises(TrainingStoppedError, match="Step 0 is saved in"):
        runs.trainer(heldout=UNANSWERED, num_steps=1).run()
    scorer.error_at = lambda index: None
    resumed = runs.trainer(heldout=UNANSWERED, num_steps=1)
    resumed.run()
    rows = [row for row in resumed.metrics.rows if row["kind"] != "breakdown"]
    assert [(row["kind"], row["step"]) for row in rows] == [("heldout", 0), ("step", 1), ("heldout", 1)]


def test_step_without_much_of_a_score_warns_once_and_names_the_setting(runs: Runs, scorer: FakeScorer) -> None:
    scorer.status_of = lambda position: PositionStatus.OK if position == 0 else PositionStatus.MISALIGNED
    display = Warnings()
    trainer = runs.trainer(display=display)
    shares = [trainer.train_step()["scored_share"] for _ in range(2)]
    assert all(isinstance(share, float) and 0 < share < 0.5 for share in shares)
    assert len(display.texts) == 1
    assert "are misaligned" in display.texts[0]
    assert "teacher.segmentation" in display.texts[0]


def test_row_tells_apart_excluded_single_and_scored_positions(runs: Runs, scorer: FakeScorer) -> None:
    scorer.status_of = lambda position: PositionStatus.EXCLUDED if position == 0 else PositionStatus.OK
    scorer.support_of = lambda position: 1 if position == 1 else None
    scorer.unmapped_mass = 0.25
    row = runs.trainer().train_step()
    num_ok, num_single, num_positions = row["num_ok"], row["num_single_support"], row["num_positions"]
    assert isinstance(num_ok, int)
    assert isinstance(num_single, int)
    # A response of one token has no second one.
    assert 1 <= num_single <= 6
    assert num_positions == num_ok - num_single
    assert row["scored_share"] == num_positions / num_ok
    assert row["unmapped_mass"] == 0.25


def test_scores_are_asked_for_as_agreed(runs: Runs, scorer: FakeScorer) -> None:
    runs.trainer().train_step()
    for call in scorer.calls:
        assert call.options["tokenizer_id"] == "registered"
        assert call.options["segmentation"] == SegmentationPolicy.MASK


def test_run_that_is_further_than_asked_is_refused(runs: Runs) -> None:
    runs.trainer(num_steps=3).run()
    with pytest.raises(RunDirectoryError, match="is at step 3 already"):
        runs.trainer(num_steps=2)
