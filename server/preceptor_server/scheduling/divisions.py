"""Groups that are too large for one forward: which can be divided, into what, and how many at a time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from preceptor_server.context_costs import ContextCosts
from preceptor_server.engines.base import Divides, Division, Engine
from preceptor_server.scheduling.fair_queue import FairQueue
from preceptor_server.scheduling.job import Job
from preceptor_server.types import GroupColumns, ResponseToScore, ScoreGroup

SMALLEST_SLICE = 64
"""As much as so many tokens cost. What does not fit into memory in such slices does not fit at all."""
_MAX_PROMPT_SHARE = 0.25
"""Of a slice. Beyond it responses are not computed apart, for each slice computes the prompt anew."""


class ByResponses:
    """A Division for an engine without one of its own: some of the responses at a time, each time with the prompt."""

    def __init__(self, engine: Engine, group: ScoreGroup, *, max_cost: float) -> None:
        self._engine = engine
        self._group = group
        self._costs = engine.info().context_costs
        self._parts = _parts_of(group, self._costs, max_cost=max_cost)
        self._columns: GroupColumns = ()
        self._num_done = 0

    @property
    def next_tokens(self) -> int:
        if self._num_done >= len(self._parts):
            return 0
        return self._part(self._num_done).num_tokens

    @property
    def next_cost(self) -> float:
        if self._num_done >= len(self._parts):
            return 0.0
        return self._part(self._num_done).forward_cost(self._costs)

    async def advance(self) -> GroupColumns | None:
        [columns] = await self._engine.score([self._part(self._num_done)])
        self._num_done += 1
        self._columns += columns
        return None if self._num_done < len(self._parts) else self._columns

    def close(self) -> None:
        self._columns = ()
        self._num_done = len(self._parts)

    def _part(self, index: int) -> ScoreGroup:
        return replace(self._group, responses=self._parts[index])


def _parts_of(group: ScoreGroup, costs: ContextCosts, *, max_cost: float) -> list[tuple[ResponseToScore, ...]]:
    """As many responses in each as fit beside the prompt, at least one."""
    parts: list[tuple[ResponseToScore, ...]] = []
    part: list[ResponseToScore] = []
    num_prompt = len(group.prompt_ids_P)
    cost = prompt_cost = costs.of_span(0, num_prompt)
    for response in group.responses:
        own = costs.of_span(num_prompt, num_prompt + len(response.ids_T))
        if part and cost + own > max_cost:
            parts.append(tuple(part))
            part, cost = [], prompt_cost
        part.append(response)
        cost += own
    return [*parts, tuple(part)]


class Divisions:
    """Which groups are divided, and which of them may be: as many as there are places, half of these for one tenant.
    The others wait here, outside the queue. A job holds its own division."""

    def __init__(self, engine: Engine, *, max_cost: int, max_open: int) -> None:
        """`max_cost` of one forward; 0 where the engine batches by itself, and nothing is divided here."""
        self._engine = engine
        self._max_cost = max_cost
        self._max_open = max_open
        self._holders: dict[Job, str] = {}
        """Jobs that have a place, and their tenants."""
        self._num_held: Counter[str] = Counter()
        self._rooms: dict[str, FairQueue[Job]] = {}
        """Of each tenant, the jobs that wait for a place. First whose last place is longest ago."""

    def divides(self, job: Job) -> bool:
        """Whether the job is computed in slices: since it is too large, or since it did not fit into memory."""
        if not self._max_cost:
            return False
        if job.slice_cost:
            return True
        return job.cost > self._max_cost and self.can_divide(job, max_cost=self._slice_cost(job))

    def can_divide(self, job: Job, *, max_cost: float) -> bool:
        """Whether slices whose forwards cost so much are worth while."""
        if not self._max_cost:
            return False
        if isinstance(self._engine, Divides):
            return True
        is_small = job.context_costs.of_span(0, len(job.group.prompt_ids_P)) <= _MAX_PROMPT_SHARE * max_cost
        return is_small and len(job.group.responses) > 1

    def reserve(self, job: Job) -> bool:
        """Whether a job that is divided may be queued; else it waits here until `release` returns it."""
        tenant = job.caller.tenant.name
        if job in self._holders:
            return True
        if self._has_place_for(tenant):
            self._hold(job)
            return True
        self._rooms.setdefault(tenant, FairQueue()).push(job)
        return False

    def release(self, job: Job) -> Sequence[Job]:
        """Frees what is held for a job, if anything is. Returns jobs that have a place from now on, to be queued."""
        if job.division is not None:
            job.division.close()
            job.division = None
        tenant = self._holders.pop(job, None)
        if tenant is None:
            self._leave_room(job)
            return ()
        self._num_held[tenant] -= 1
        if not self._num_held[tenant]:
            del self._num_held[tenant]
        return self._fill_places()

    def estimate(self, job: Job) -> float:
        """Cost of its next slice: supports and candidates are spread over all of them."""
        if job.division is None:
            return min(job.cost, float(self._max_cost))
        return job.division.next_cost * job.cost / job.forward_cost

    def open(self, job: Job) -> Division:
        """The job's division, opened if it is not. Raises what the engine raises."""
        assert job in self._holders, "only a job that has a place is divided"
        if job.division is None:
            job.slice_cost = job.slice_cost or self._slice_cost(job)
            if isinstance(self._engine, Divides):
                job.division = self._engine.divide(job.group, max_cost=job.slice_cost)
            else:
                job.division = ByResponses(self._engine, job.group, max_cost=job.slice_cost)
        return job.division

    def restart(self, job: Job) -> None:
        """Its next slice is the first again."""
        if job.division is not None:
            job.division.close()
            job.division = None

    def _has_place_for(self, tenant: str) -> bool:
        held = self._num_held[tenant]
        return len(self._holders) < self._max_open and (not held or held < self._max_open // 2)

    def _hold(self, job: Job) -> None:
        self._holders[job] = job.caller.tenant.name
        self._num_held[job.caller.tenant.name] += 1

    def _fill_places(self) -> list[Job]:
        """First the tenants that have the fewest places, of these in turn."""
        admitted: list[Job] = []
        while waiting := [tenant for tenant in self._rooms if self._has_place_for(tenant)]:
            tenant = min(waiting, key=lambda tenant: self._num_held[tenant])
            room = self._rooms[tenant] = self._rooms.pop(tenant)  # behind the others
            job = room.first()
            assert job is not None, "empty rooms are closed"
            room.take(job, cost=job.cost)
            self._close_if_empty(job)
            self._hold(job)
            admitted.append(job)
        return admitted

    def _leave_room(self, job: Job) -> None:
        room = self._rooms.get(job.caller.tenant.name)
        if room is not None and room.remove(job):
            self._close_if_empty(job)

    def _close_if_empty(self, job: Job) -> None:
        if not len(self._rooms[job.caller.tenant.name]):
            del self._rooms[job.caller.tenant.name]

    def _slice_cost(self, job: Job) -> float:
        return max(SMALLEST_SLICE, self._max_cost * job.forward_cost / job.cost)
