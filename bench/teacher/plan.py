"""Which cells a run has, in which order: every way in turn on the same job, each job begun by another of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from bench.teacher.results import Cell
from bench.teacher.ways import IGNORES_TOP_K
from bench.teacher.workloads import Job


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is measured, how often."""

    ways: tuple[str, ...]
    workloads: tuple[str, ...]
    top_ks: tuple[int, ...]
    num_rounds: int
    scale: float
    vocabulary_size: int

    def cells(self) -> Iterator[Cell]:
        """In rounds, so that what the machine does meanwhile falls on all ways alike."""
        for turn, (round_index, workload, top_k) in enumerate(
            (round_index, workload, top_k)
            for round_index in range(self.num_rounds)
            for workload in self.workloads
            for top_k in self.top_ks
        ):
            for index in range(len(self.ways)):
                way = self.ways[(index + turn) % len(self.ways)]
                if way not in IGNORES_TOP_K:
                    yield Cell(round_index=round_index, workload=workload, top_k=top_k, way=way)
                elif top_k == self.top_ks[0]:
                    yield Cell(round_index=round_index, workload=workload, top_k=None, way=way)

    def job(self, cell: Cell) -> Job:
        """The same for all ways of a round, workload and K."""
        return self._job(cell.workload, round_index=cell.round_index, top_k=cell.top_k or self.top_ks[0])

    def warm_up_jobs(self) -> list[Job]:
        """One group of each workload, of a round of its own."""
        return [
            self._job(name, round_index=self.num_rounds, top_k=max(self.top_ks), scale=0) for name in self.workloads
        ]

    def _job(self, workload: str, *, round_index: int, top_k: int, scale: float | None = None) -> Job:
        return Job(
            workload=workload,
            round_index=round_index,
            top_k=top_k,
            scale=self.scale if scale is None else scale,
            vocabulary_size=self.vocabulary_size,
        )
