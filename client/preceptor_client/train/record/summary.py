"""Summarises the outcome of a run from its metrics. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from preceptor_client.train.errors import RunDirectoryError
from preceptor_client.train.record.metrics import METRICS_FILE, MetricRow, read_rows, task_of

_Answer = dict[str, str | bool]


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleAnswer:
    """One held-out example, before and after."""

    task: str = ""
    """The name of its task, in a run that has several."""
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
class TaskSummary:
    """The held-out measurements of one task, the first and the last. None where they were not made."""

    name: str
    """In the settings; empty where the run has one task, without a name."""
    total: int | None
    """Answers that were compared."""
    before: int | None
    """Of them, those that were right."""
    after: int | None
    teacher: int | None
    """Of the untrained student's answers to the teacher's prompts."""
    loss_before: float | None
    """Nats per position."""
    loss_after: float | None
    reward_before: float | None
    """Mean over the episodes."""
    reward_after: float | None
    answer_length_before: float | None
    """Mean, tokens."""
    answer_length_after: float | None
    answer_length_teacher: float | None
    samples: tuple[SampleAnswer, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSummary:
    """The figures of a run. Counts of held-out answers are None where none were measured, losses and rewards likewise;
    of several tasks counts are sums, losses and rewards are means over the tasks that have both."""

    directory: Path
    model_folder: Path
    """The trained model, as `from_pretrained` loads it."""
    num_steps: int
    num_skipped: int
    failed_groups: int
    """Groups that teachers failed on, over all steps; no step learnt from them."""
    seconds: float
    """Sum over the steps, those before a resume included."""
    loss_first: float | None
    loss_last: float | None
    heldout_total: int | None
    heldout_before: int | None
    heldout_after: int | None
    heldout_teacher: int | None
    """None too where it was not measured of every task."""
    heldout_loss_before: float | None
    heldout_loss_after: float | None
    """Nats per position."""
    heldout_reward_before: float | None
    heldout_reward_after: float | None
    answer_length_before: float | None
    answer_length_after: float | None
    answer_length_teacher: float | None
    samples: tuple[SampleAnswer, ...]
    tasks: tuple[TaskSummary, ...]
    """In the order of their first measurement; empty where the run has one task, without a name."""


def summarise(directory: Path, *, model_folder: Path) -> RunSummary:
    """Reads the metrics of a run."""
    rows = read_rows(directory / METRICS_FILE)
    steps = [row for row in rows if row["kind"] == "step"]
    losses = [_float(row["loss"]) for row in steps if row["loss"] is not None]
    tasks = _tasks(rows)
    # Examples without answers are measured by their loss or reward alone.
    answered = [task for task in tasks if task.total is not None]
    has_teacher = all(task.teacher is not None for task in answered)
    loss_before, loss_after = _means([(task.loss_before, task.loss_after) for task in tasks])
    reward_before, reward_after = _means([(task.reward_before, task.reward_after) for task in tasks])
    return RunSummary(
        directory=directory,
        model_folder=model_folder,
        num_steps=len(steps),
        num_skipped=sum(row["loss"] is None for row in steps),
        failed_groups=sum(_count(row, "failed_groups") or 0 for row in steps),
        seconds=sum(_float(row["step_seconds"]) for row in steps),
        loss_first=losses[0] if losses else None,
        loss_last=losses[-1] if losses else None,
        heldout_total=_sum(task.total for task in answered),
        heldout_before=_sum(task.before for task in answered),
        heldout_after=_sum(task.after for task in answered),
        heldout_teacher=_sum(task.teacher for task in answered) if has_teacher else None,
        heldout_loss_before=loss_before,
        heldout_loss_after=loss_after,
        heldout_reward_before=reward_before,
        heldout_reward_after=reward_after,
        answer_length_before=_length([(task.answer_length_before, task.total) for task in answered]),
        answer_length_after=_length([(task.answer_length_after, task.total) for task in answered]),
        answer_length_teacher=_length([(task.answer_length_teacher, task.total) for task in answered]),
        samples=tuple(sample for task in tasks for sample in task.samples),
        tasks=tuple(task for task in tasks if task.name),
    )


def _tasks(rows: Sequence[MetricRow]) -> list[TaskSummary]:
    measured = [row for row in rows if row["kind"] in ("heldout", "heldout_teacher")]
    names = dict.fromkeys(task_of(row) for row in measured)
    return [_task(name, [row for row in measured if task_of(row) == name]) for name in names]


def _task(name: str, rows: Sequence[MetricRow]) -> TaskSummary:
    own = [row for row in rows if row["kind"] == "heldout"]
    before, after = (own[0], own[-1]) if own else (None, None)
    teacher = next((row for row in rows if row["kind"] == "heldout_teacher"), None)
    has_answers = before is not None and "num_correct" in before
    return TaskSummary(
        name=name,
        total=_count(before, "num_examples") if has_answers else None,
        before=_count(before, "num_correct"),
        after=_count(after, "num_correct"),
        teacher=_count(teacher, "num_correct"),
        loss_before=_number(before, "loss"),
        loss_after=_number(after, "loss"),
        reward_before=_number(before, "mean_reward"),
        reward_after=_number(after, "mean_reward"),
        answer_length_before=_number(before, "mean_answer_length"),
        answer_length_after=_number(after, "mean_answer_length"),
        answer_length_teacher=_number(teacher, "mean_answer_length"),
        samples=_samples(name, before, after, teacher) if before and after and has_answers else (),
    )


def _samples(name: str, before: MetricRow, after: MetricRow, teacher: MetricRow | None) -> tuple[SampleAnswer, ...]:
    firsts, lasts = _answers(before), _answers(after)
    theirs = _beside(firsts, _answers(teacher) if teacher else [])
    return tuple(
        SampleAnswer(
            task=name,
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


def _beside(answers: Sequence[_Answer], others: Sequence[_Answer]) -> list[_Answer | None]:
    """For each answer that of `others` to the same example; None where it is not among them. Both are in the order of
    the examples, and each may lack one whose prompt could not be encoded."""
    found: list[_Answer | None] = []
    left = list(others)
    for answer in answers:
        same = [at for at, one in enumerate(left) if all(one[key] == answer[key] for key in ("prompt", "expected"))]
        found.append(left[same[0]] if same else None)
        left = left[same[0] + 1 :] if same else left
    return found


def _answers(row: MetricRow) -> list[_Answer]:
    answers = row["answers"]
    if not isinstance(answers, list):
        raise RunDirectoryError(f"the metrics of step {row['step']} hold no answers")
    return answers


def _sum(counts: Iterable[int | None]) -> int | None:
    """Of what was measured; None where nothing was."""
    given = [count for count in counts if count is not None]
    return sum(given) if given else None


def _means(pairs: Sequence[tuple[float | None, float | None]]) -> tuple[float | None, float | None]:
    """Before and after: of one task as they are, of several the means over those that have both."""
    if len(pairs) == 1:
        return pairs[0]
    whole = [(before, after) for before, after in pairs if before is not None and after is not None]
    if not whole:
        return None, None
    return sum(before for before, _ in whole) / len(whole), sum(after for _, after in whole) / len(whole)


def _length(means: Sequence[tuple[float | None, int | None]]) -> float | None:
    """The mean over all answers, of each task's mean and number."""
    given = [(mean, number) for mean, number in means if mean is not None and number]
    if len(given) == 1:
        return given[0][0]
    return sum(mean * number for mean, number in given) / sum(number for _, number in given) if given else None


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
