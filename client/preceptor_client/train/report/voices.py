"""Says whose answer the numbers of a rollout are: the only teacher's, or of several their mixture, or the first's."""

from __future__ import annotations

from dataclasses import dataclass

from preceptor_client.train.record.rollout_log import RolloutRow
from preceptor_client.train.report.rundata import Settings


@dataclass(frozen=True, slots=True, kw_only=True)
class Voice:
    """Whose answer is shown of a rollout."""

    words: str
    """A name, or a few words that stand for one, at the beginning of a sentence."""
    is_mixture: bool
    teachers: tuple[str, ...]
    """Everyone who scored it, in the task's order; empty where the only teacher has no name."""


def voice_of(row: RolloutRow, *, settings: Settings) -> Voice:
    """`settings` are the run's, which say how several teachers are combined."""
    names = tuple(row.get("teachers", {}))
    task = settings.get("tasks", {}).get(row.get("run_task", ""), {})
    is_mixture = len(names) > 1 and task.get("combine", "mixture") == "mixture"
    return Voice(words=_words(names, is_mixture=is_mixture), is_mixture=is_mixture, teachers=names)


def _words(names: tuple[str, ...], *, is_mixture: bool) -> str:
    if len(names) <= 1:
        return names[0] if names else "The teacher"
    if is_mixture:
        return f"The mixture of {', '.join(names[:-1])} and {names[-1]}"
    return f"{names[0]}, the first of the teachers,"
