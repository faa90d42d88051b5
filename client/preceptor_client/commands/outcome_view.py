"""The held-out measurements of a finished run, in lines for people: by task, and over all tasks. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterator

from preceptor_client.train.record.summary import RunSummary, TaskSummary


def heldout_lines(summary: RunSummary) -> list[str]:
    """The held-out measurements, before and after; what was not measured has no line."""
    lines = [line for task in summary.tasks for line in _lines_of(task)]
    if len(summary.tasks) == 1:
        return lines
    return lines + list(_lines_over_all(summary))


def _lines_of(task: TaskSummary) -> Iterator[str]:
    of = f" of {task.name}"
    yield from _answers(of, task.before, task.after, total=task.total)
    yield from _change(f"loss{of}", task.loss_before, task.loss_after)
    yield from _change(f"reward{of}", task.reward_before, task.reward_after)


def _lines_over_all(summary: RunSummary) -> Iterator[str]:
    has_several = len(summary.tasks) > 1
    of, mean = (" of all tasks", ", mean over tasks") if has_several else ("", "")
    yield from _answers(of, summary.heldout_before, summary.heldout_after, total=summary.heldout_total)
    yield from _change(f"loss{mean}", summary.heldout_loss_before, summary.heldout_loss_after)
    yield from _change(f"reward{mean}", summary.heldout_reward_before, summary.heldout_reward_after)


def _answers(of: str, before: int | None, after: int | None, *, total: int | None) -> Iterator[str]:
    if total is not None:
        yield f"held-out answers{of}: {before} of {total} right before, {after} after"


def _change(what: str, before: float | None, after: float | None) -> Iterator[str]:
    if before is not None and after is not None:
        yield f"held-out {what}: {before:.4f} -> {after:.4f}"
