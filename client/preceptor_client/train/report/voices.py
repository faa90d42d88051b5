"""Says whose answer the numbers of a rollout are: the only teacher's, or of several their mixture, or the first's."""

from __future__ import annotations

from preceptor_client.train.record.rollout_log import RolloutRow
from preceptor_client.train.report.rundata import Settings


def voice_of(row: RolloutRow, *, settings: Settings) -> str:
    """A name, or a few words that stand for one, at the beginning of a sentence."""
    names = [*row.get("teachers", {})]
    if len(names) <= 1:
        return names[0] if names else "The teacher"
    task = settings.get("tasks", {}).get(row.get("run_task", ""), {})
    if task.get("combine", "mixture") == "mixture":
        return f"The mixture of {', '.join(names[:-1])} and {names[-1]}"
    return f"{names[0]}, the first of the teachers,"
