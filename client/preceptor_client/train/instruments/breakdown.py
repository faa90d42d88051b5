"""Computes the measures by position, turn, task and teacher, as rows of metrics. Writes nothing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from preceptor_client.train.instruments.measures import measure, reward_measures
from preceptor_client.train.instruments.table import BoolColumn, PositionTable
from preceptor_client.train.record.metrics import MetricRow

BUCKET_STARTS = (0, 16, 64, 256, 1024, 4096)
"""Each bucket of positions reaches to the next start, the last without end. Lengths vary by powers, so do these."""
TURN_STARTS = (1, 2, 3, 5, 9)
"""Likewise of turns, which are counted from 1 here."""
NO_TASK = "(none)"
"""Stands for the examples without a task where others name one."""


def breakdown_rows(table: PositionTable, *, step: int) -> list[MetricRow]:
    """One row of kind "breakdown" per bucket of positions that a response reaches, per bucket of turns where one has
    several, and per task where an example names one. What is counted in responses (truncated_share, scored_end_share,
    mean_reward) is over those that reach the bucket."""
    parts = [("position", group, part) for group, part in _by_position(table)]
    parts += [("turn", group, part) for group, part in _by_turn(table)]
    parts += [("task", group, part) for group, part in _by_task(table)]
    return [_row(part, step=step, by=by, group=group) for by, group, part in parts]


def teacher_breakdown_rows(tables: Mapping[str, PositionTable], *, step: int) -> list[MetricRow]:
    """One row per teacher, by the name that it has in the settings, of its own scores; `mean_weight` is how much it
    counted beside others. `tables` are those of `teacher_tables`."""
    return [
        _row(table, step=step, by="teacher", group=name)
        | {"mean_weight": float(table.shares_N.mean()) if len(table.shares_N) else None}
        for name, table in tables.items()
    ]


def _row(part: PositionTable, *, step: int, by: str, group: str) -> MetricRow:
    return {"kind": "breakdown", "step": step, "by": by, "group": group, **measure(part), **reward_measures(part)}


def _by_position(table: PositionTable) -> Iterator[tuple[str, PositionTable]]:
    for label, start, end in _buckets(BUCKET_STARTS):
        is_reached_R = table.lengths_R > start
        if not is_reached_R.any():
            return
        is_inside_N = (table.positions_N >= start) & (table.positions_N < end)
        yield label, table.part(rows_N=is_inside_N, responses_R=is_reached_R)


def _by_turn(table: PositionTable) -> Iterator[tuple[str, PositionTable]]:
    if not (table.num_turns_R > 1).any():
        return
    turns_N = table.turns_N + 1
    for label, start, end in _buckets(TURN_STARTS):
        is_reached_R = table.num_turns_R >= start
        if not is_reached_R.any():
            return
        yield label, table.part(rows_N=(turns_N >= start) & (turns_N < end), responses_R=is_reached_R)


def _buckets(starts: Sequence[int]) -> Iterator[tuple[str, int, float]]:
    """The label of each, its start, and the start of the next."""
    for start, end in zip(starts, (*starts[1:], None), strict=True):
        if end is None:
            yield f"{start}-", start, np.inf
        else:
            yield str(start) if end == start + 1 else f"{start}-{end - 1}", start, end


def _by_task(table: PositionTable) -> Iterator[tuple[str, PositionTable]]:
    """Of a run with tasks each of them, and of each the kinds of examples that it has, such as "math/algebra"; of a run
    without, the tasks that its examples name."""
    run_tasks_R, tasks_R = table.run_tasks_R, table.tasks_R
    if any(run_tasks_R):
        members_R = {str(name): _are(run_tasks_R, name) for name in set(run_tasks_R)}
        for name, kind in set(zip(run_tasks_R, tasks_R, strict=True)):
            if kind not in ("", name):
                members_R[f"{name}/{kind}"] = _are(run_tasks_R, name) & _are(tasks_R, kind)
    else:
        members_R = {str(name): _are(tasks_R, name) for name in set(tasks_R) if any(tasks_R)}
    for label, is_member_R in sorted(members_R.items(), key=lambda group: group[0]):
        yield label or NO_TASK, table.part(rows_N=is_member_R[table.responses_N], responses_R=is_member_R)


def _are(names_R: npt.NDArray[np.object_], name: str) -> BoolColumn:
    return np.array(names_R == name, np.bool_)
