"""How the sparse and the dense way grow with N, K and V, one at a time around the centre. Each point is a process."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator
from dataclasses import dataclass

from bench.head_case import Case
from bench.workers import Worker

SWEEPS: dict[str, tuple[int, ...]] = {
    "num_positions": (256, 512, 1024, 2048, 4096, 8192, 16_384),
    "support_size": (8, 32, 128, 512, 1024),
    "vocabulary_size": (16_384, 32_768, 49_152, 131_072, 262_144),
}
DENSE_LIMIT_BYTES = 6 << 30
"""Where the dense way needs more it is left out."""
MAX_RUNS = 5
SECONDS_PER_POINT = 3.0
"""A point is run again until it took as long, or MAX_RUNS times; at least once. Medians."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One way at one size."""

    sweep: str
    """The field of Case that grows."""
    size: int
    way: str
    seconds: float | None
    """None where the dense way would need too much."""
    resident_bytes: int | None
    """Peak growth of the process, without the gradient of the matrix."""


def measure_scaling(sparse: str, dense: str) -> Iterator[Point]:
    """Every point as soon as it is measured; the arguments are names of ways. The centre is measured once."""
    known: dict[tuple[Case, str], tuple[float, int]] = {}
    for sweep, sizes in SWEEPS.items():
        for size in sizes:
            case = _at(sweep, size)
            for way in (sparse, dense):
                if way == dense and case.dense_bytes > DENSE_LIMIT_BYTES:
                    yield Point(sweep=sweep, size=size, way=way, seconds=None, resident_bytes=None)
                    continue
                if (case, way) not in known:
                    known[case, way] = _measure(way, case)
                seconds, resident = known[case, way]
                yield Point(sweep=sweep, size=size, way=way, seconds=seconds, resident_bytes=resident)


def _at(sweep: str, size: int) -> Case:
    return Case.from_json(json.dumps({sweep: size}))


def _measure(way: str, case: Case) -> tuple[float, int]:
    with Worker("bench.head_worker", way, case.to_json()) as worker:
        resident = int(worker.ask(measure="resident")["bytes"]) - case.weight_bytes
        runs: list[float] = []
        while not runs or (len(runs) < MAX_RUNS and sum(runs) < SECONDS_PER_POINT):
            runs.append(worker.ask(measure="seconds")["seconds"])
    return statistics.median(runs), resident
