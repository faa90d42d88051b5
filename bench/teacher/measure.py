"""Runs a plan's cells one after another, each while all other ways' processes are paused, and saves after each."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from bench.teacher.plan import Plan
from bench.teacher.process_tree import PeakMemory
from bench.teacher.results import Cell, Measurement, Results
from bench.teacher.ways import Way
from bench.teacher.workloads import Job


def warm_up(way: Way, jobs: list[Job]) -> None:
    """One small job of each workload, then a pause."""
    with way.tree.awake():
        for job in jobs:
            way.run(job)


def measure(
    plan: Plan,
    ways: Mapping[str, Way],
    results: Results,
    *,
    save: Callable[[], None],
    tell: Callable[[Cell, Measurement], None],
) -> None:
    """Fills `results` with the cells that it lacks. Raises RuntimeError where a way answers too little."""
    for cell in plan.cells():
        if cell in results.cells:
            continue
        way, job = ways[cell.way], plan.job(cell)
        with way.tree.awake(), PeakMemory(way.tree) as memory:
            outcome = way.run(job)
        if outcome.num_positions != job.shape.num_positions:
            raise RuntimeError(f"{cell}: {outcome.num_positions} positions instead of {job.shape.num_positions}")
        results.cells[cell] = Measurement(outcome=outcome, peak_bytes=memory.num_bytes)
        save()
        tell(cell, results.cells[cell])
