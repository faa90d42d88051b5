"""The same measures by position in the response and by task, as rows of metrics. Writes nothing."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from preceptor_client.train.instruments.measures import measure
from preceptor_client.train.instruments.table import PositionTable
from preceptor_client.train.record.metrics import MetricRow

BUCKET_STARTS = (0, 16, 64, 256, 1024, 4096)
"""Each bucket of positions reaches to the next start, the last without end. Lengths vary by powers, so do these."""
NO_TASK = "(none)"
"""Stands for the examples without a task where others name one."""


def breakdown_rows(table: PositionTable, *, step: int) -> list[MetricRow]:
    """One row of kind "breakdown" per bucket of positions that a response reaches, and per task where an example names
    one. What is counted in responses (truncated_share, scored_end_share) is over those that reach the bucket."""
    parts = [("position", group, part) for group, part in _by_position(table)]
    parts += [("task", group, part) for group, part in _by_task(table)]
    return [{"kind": "breakdown", "step": step, "by": by, "group": group, **measure(part)} for by, group, part in parts]


def _by_position(table: PositionTable) -> Iterator[tuple[str, PositionTable]]:
    for start, end in zip(BUCKET_STARTS, (*BUCKET_STARTS[1:], None), strict=True):
        is_reached_R = table.lengths_R > start
        if not is_reached_R.any():
            return
        is_inside_N = table.positions_N >= start
        if end is not None:
            is_inside_N &= table.positions_N < end
        label = f"{start}-" if end is None else f"{start}-{end - 1}"
        yield label, table.part(rows_N=is_inside_N, responses_R=is_reached_R)


def _by_task(table: PositionTable) -> Iterator[tuple[str, PositionTable]]:
    names = sorted(set(table.tasks_R))
    if not any(names):
        return
    for name in names:
        is_member_R = np.array(table.tasks_R == name, np.bool_)
        part = table.part(rows_N=is_member_R[table.responses_N], responses_R=is_member_R)
        yield name or NO_TASK, part
