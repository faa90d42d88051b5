"""What came out of a run, for people and programs: read from its metrics. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from preceptor_client.train.errors import RunDirectoryError
from preceptor_client.train.record.metrics import METRICS_FILE, MetricRow, read_rows


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleAnswer:
    """One held-out example, before and after."""

    prompt: str
    expected: str
    before: str
    before_is_correct: bool
    after: str
    after_is_correct: bool
    teacher: str | None
    """The untrained student's answer to the teacher's prompt; None where that was not measured."""
    teacher_is_correct: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSummary:
    """The figures of a run. Counts of held-out answers are None where none were measured, losses likewise."""

    directory: Path
    model_folder: Path
    """The trained model, as `from_pretrained` loads it."""
    num_steps: int
    num_skipped: int
    seconds: float
    """Sum over the steps, those before a resume included."""
    loss_first: float | None
    loss_last: float | None
    heldout_total: int | None
    heldout_before: int | None
    heldout_after: int | None
    heldout_teacher: int | None
    heldout_loss_before: float | None
    heldout_loss_after: float | None
    """Nats per position."""
    answer_length_before: float | None
    answer_length_after: float | None
    answer_length_teacher: float | None
    samples: tuple[SampleAnswer, ...]


def summarise(directory: Path, *, model_folder: Path) -> RunSummary:
    """Reads the metrics of a run."""
    rows = read_rows(directory / METRICS_FILE)
    steps = [row for row in rows if row["kind"] == "step"]
    losses = [_float(row["loss"]) for row in steps if row["loss"] is not None]
    measured = [row for row in rows if row["kind"] == "heldout"]
    before = measured[0] if measured else None
    after = measured[-1] if measured else None
    teacher = next((row for row in rows if row["kind"] == "heldout_teacher"), None)
    # Examples without answers are measured by their loss alone.
    has_answers = before is not None and "num_correct" in before
    return RunSummary(
        directory=directory,
        model_folder=model_folder,
        num_steps=len(steps),
        num_skipped=sum(row["loss"] is None for row in steps),
        seconds=sum(_float(row["step_seconds"]) for row in steps),
        loss_first=losses[0] if losses else None,
        loss_last=losses[-1] if losses else None,
        heldout_total=_count(before, "num_examples") if has_answers else None,
        heldout_before=_count(before, "num_correct"),
        heldout_after=_count(after, "num_correct"),
        heldout_teacher=_count(teacher, "num_correct"),
        heldout_loss_before=_number(before, "loss"),
        heldout_loss_after=_number(after, "loss"),
        answer_length_before=_number(before, "mean_answer_length"),
        answer_length_after=_number(after, "mean_answer_length"),
        answer_length_teacher=_number(teacher, "mean_answer_length"),
        samples=_samples(before, after, teacher) if before and after and has_answers else (),
    )


def _samples(before: MetricRow, after: MetricRow, teacher: MetricRow | None) -> tuple[SampleAnswer, ...]:
    firsts, lasts = _answers(before), _answers(after)
    theirs: Sequence[dict[str, str | bool] | None] = _answers(teacher) if teacher else [None] * len(firsts)
    return tuple(
        SampleAnswer(
            prompt=str(first["prompt"]),
            expected=str(first["expected"]),
            before=str(first["answer"]),
            before_is_correct=bool(first["is_correct"]),
            after=str(last["answer"]),
            after_is_correct=bool(last["is_correct"]),
            teacher=str(their["answer"]) if their else None,
            teacher_is_correct=bool(their and their["is_correct"]),
        )
        for first, last, their in zip(firsts, lasts, theirs, strict=True)
    )


def _answers(row: MetricRow) -> list[dict[str, str | bool]]:
    answers = row["answers"]
    if not isinstance(answers, list):
        raise RunDirectoryError(f"the metrics of step {row['step']} hold no answers")
    return answers


def _count(row: MetricRow | None, name: str) -> int | None:
    number = _number(row, name)
    return None if number is None else int(number)


def _number(row: MetricRow | None, name: str) -> float | None:
    value = row.get(name) if row else None
    return None if value is None else _float(value)


def _float(value: object) -> float:
    if not isinstance(value, int | float):
        raise RunDirectoryError(f"the metrics hold {value!r} where a number belongs")
    return float(value)
