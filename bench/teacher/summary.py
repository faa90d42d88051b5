"""Medians over rounds of what the cells hold. Ratios are of one round, where both sides met the same machine."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from bench.teacher.outcome import STAGES
from bench.teacher.results import Cell, Measurement
from bench.teacher.workloads import Shape

PEER = "trl"


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One way on one workload at one K, over all rounds."""

    workload: str
    top_k: int | None
    way: str
    num_rounds: int
    positions_per_second: float
    slowest_positions_per_second: float
    fastest_positions_per_second: float
    times_peer: float | None
    """Positions a second, over PEER's in the same round."""
    latency_p50_seconds: float
    """Over the requests of all rounds, as is the next."""
    latency_p95_seconds: float
    bytes_per_position: float | None
    peak_bytes: int
    """The largest of any round."""
    mean_sampled_logprob: float | None
    stage_shares: Mapping[str, float] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Attainable:
    """What the bare forward's rate would give if a teacher did nothing else."""

    tokens_per_second: float
    positions_per_second: float
    """With what sequences share computed once, and no head."""


def summarise(cells: Mapping[Cell, Measurement]) -> list[Row]:
    """A row per workload, K and way, in the order in which they were first measured."""
    keys = dict.fromkeys((cell.workload, cell.top_k, cell.way) for cell in cells)
    return [_row(workload, top_k, way, cells) for workload, top_k, way in keys]


def attainable(measurements: Iterable[Measurement], shape: Shape) -> Attainable:
    """From the bare forward on every sequence of a workload."""
    seconds = statistics.median(one.outcome.seconds for one in measurements)
    rate = shape.num_tokens / seconds
    return Attainable(tokens_per_second=rate, positions_per_second=shape.num_positions * rate / shape.num_unique_tokens)


def _row(workload: str, top_k: int | None, way: str, cells: Mapping[Cell, Measurement]) -> Row:
    mine = {cell: one for cell, one in cells.items() if (cell.workload, cell.top_k, cell.way) == (workload, top_k, way)}
    rates = [one.positions_per_second for one in mine.values()]

    p50, p95 = np.percentile([seconds for one in mine.values() for seconds in one.outcome.latencies], [50, 95])
    ratios = [
        one.positions_per_second / cells[peer].positions_per_second
        for cell, one in mine.items()
        if (peer := Cell(round_index=cell.round_index, workload=workload, top_k=top_k, way=PEER)) in cells
    ]
    return Row(
        workload=workload,
        top_k=top_k,
        way=way,
        num_rounds=len(mine),
        positions_per_second=statistics.median(rates),
        slowest_positions_per_second=min(rates),
        fastest_positions_per_second=max(rates),
        times_peer=_median(ratios),
        latency_p50_seconds=float(p50),
        latency_p95_seconds=float(p95),
        bytes_per_position=_median(one.bytes_per_position for one in mine.values()),
        peak_bytes=max(one.peak_bytes for one in mine.values()),
        mean_sampled_logprob=_median(one.outcome.mean_sampled_logprob for one in mine.values()),
        stage_shares=_median_shares([one.outcome.stage_shares for one in mine.values()]),
    )


def _median(values: Iterable[float | None]) -> float | None:
    """None of a way that has no such thing."""
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None


def _median_shares(rounds: Sequence[Mapping[str, float] | None]) -> dict[str, float] | None:
    known = [shares for shares in rounds if shares is not None]
    if not known:
        return None
    return {stage: statistics.median(shares[stage] for shares in known) for stage in STAGES}
