"""Takes batches out of the queue: in fair order, full, and without what nobody waits for. Knows no engine's calls."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from preceptor_server.scheduling.batch_limit import BatchLimit
from preceptor_server.scheduling.bisection import Lineage
from preceptor_server.scheduling.costs import SharedPrefixes
from preceptor_server.scheduling.divisions import Divisions
from preceptor_server.scheduling.fair_queue import FairQueue
from preceptor_server.scheduling.job import Job

_MAX_ASIDE = 16
"""Entries that are passed over in the search for some that fit."""
_FULL_SHARE = 0.98
"""Of the limit: a batch of that size is full, and nothing more is searched for."""
MAX_OVERTAKEN = 8
"""Batches that are filled past an entry. After them it ends a batch that it does not fit into, and so becomes the first
of one, where it fits whatever its size. python -m bench.scheduling prints how full batches are."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Batch:
    """What one forward computes."""

    jobs: tuple[Job, ...]
    computed: tuple[int, ...]
    """Of each job, the tokens that it adds to the forward."""
    cost: float
    is_slice: bool = False
    """The next slice of the only job, by itself."""
    lineage: Lineage | None = None
    """Of the failed batch that this one is a part of."""

    @property
    def num_computed(self) -> int:
        """Tokens of the forward; of a slice an estimate."""
        return sum(self.computed)

    @property
    def is_exclusive(self) -> bool:
        """Whether nothing else may be in flight with it, where the engine batches by itself."""
        return any(job.is_exclusive for job in self.jobs)


def part_of(jobs: Sequence[Job], *, min_shared: int | None, lineage: Lineage | None) -> Batch:
    """A batch of those that were in a larger one, in the same order."""
    prefixes, computed = SharedPrefixes(min_shared=min_shared), []
    cost = 0.0
    for job in jobs:
        shared = prefixes.num_shared(job.group)
        prefixes.add(job.group)
        computed.append(job.num_tokens - shared)
        cost += job.cost_beyond(shared)
    return Batch(jobs=tuple(jobs), computed=tuple(computed), cost=cost, lineage=lineage)


class BatchTaker:
    """Forms one batch at a time."""

    def __init__(
        self, queue: FairQueue[Job], *, limit: BatchLimit, divisions: Divisions, min_shared: int | None
    ) -> None:
        self._queue = queue
        self._limit = limit
        self._divisions = divisions
        self._min_shared = min_shared

    def take(self, *, now: float, is_usable: Callable[[Job], bool]) -> Batch | None:
        """The next batch; None where nothing waits. What is not usable is taken out of the queue."""
        draft = _Draft(room=self._limit.tokens(now), prefixes=SharedPrefixes(min_shared=self._min_shared))
        passed: list[Job] = []
        num_overtaken = 0
        while draft.has_room and len(passed) < _MAX_ASIDE and (job := self._queue.first()) is not None:
            if not is_usable(job):
                self._queue.remove(job)
                continue
            is_divided, num_shared = self._divisions.divides(job), draft.num_shared(job)
            if not draft.jobs and is_divided:
                self._queue.take(job, cost=draft.add_slice(job, cost=self._divisions.estimate(job)))
            elif not is_divided and draft.fits(job, num_shared):
                self._queue.take(job, cost=draft.add(job, num_shared))
                num_overtaken = len(passed)
            elif job.num_overtaken >= MAX_OVERTAKEN:
                break
            else:
                self._queue.set_aside(job)
                passed.append(job)
        self._queue.restore()
        for job in passed[:num_overtaken]:
            job.num_overtaken += 1
        return draft.finish()


class _Draft:
    """The batch that is being filled. Its first entry may be of any size."""

    def __init__(self, *, room: float, prefixes: SharedPrefixes) -> None:
        self.jobs: list[Job] = []
        self._room = room
        self._full_at = (1 - _FULL_SHARE) * room
        self._prefixes = prefixes
        self._computed: list[int] = []
        self._cost = 0.0
        self._is_closed = False
        """It holds something that shares a forward with nothing else."""
        self._is_slice = False

    @property
    def has_room(self) -> bool:
        return not self.jobs or (self._room >= self._full_at and not self._is_closed)

    def num_shared(self, job: Job) -> int:
        """Tokens that the job has in common with what is in the batch."""
        return self._prefixes.num_shared(job.group)

    def fits(self, job: Job, num_shared: int) -> bool:
        return not self.jobs or (job.cost_beyond(num_shared) <= self._room and not job.is_exclusive)

    def add(self, job: Job, num_shared: int) -> float:
        """Its cost in this batch."""
        self._computed.append(job.num_tokens - num_shared)
        self._prefixes.add(job.group)
        self._is_closed = job.is_exclusive
        return self._append(job, job.cost_beyond(num_shared))

    def add_slice(self, job: Job, *, cost: float) -> float:
        self._computed.append(max(1, round(cost)))
        self._is_closed = self._is_slice = True
        return self._append(job, cost)

    def finish(self) -> Batch | None:
        if not self.jobs:
            return None
        return Batch(jobs=tuple(self.jobs), computed=tuple(self._computed), cost=self._cost, is_slice=self._is_slice)

    def _append(self, job: Job, cost: float) -> float:
        self.jobs.append(job)
        self._cost += cost
        self._room -= cost
        return cost
