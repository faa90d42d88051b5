"""What becomes of failed batches: which groups are computed again, which are to blame, and what callers are told."""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections import deque
from collections.abc import Callable, Sequence

from preceptor_server.errors import (
    BadGroupError,
    EngineFailedError,
    EngineOutOfMemoryError,
    EngineUnavailableError,
)
from preceptor_server.scheduling.bad_groups import BadGroups
from preceptor_server.scheduling.batch_limit import BatchLimit
from preceptor_server.scheduling.batches import Batch, part_of
from preceptor_server.scheduling.bisection import Lineage, Suspicion, Verdict
from preceptor_server.scheduling.divisions import SMALLEST_SLICE, Divisions
from preceptor_server.scheduling.job import Job

logger = logging.getLogger(__name__)

GROUP_TOO_LARGE = "GROUP_TOO_LARGE"


class Failures:
    """Takes the outcome of every batch. `retries` are parts of failed ones, to be computed again."""

    def __init__(
        self,
        *,
        bad_groups: BadGroups,
        divisions: Divisions,
        limit: BatchLimit,
        min_shared: int | None,
        hold: Callable[[Job], None],
        requeue: Callable[[Job], None],
        charge: Callable[[Job, float], None],
    ) -> None:
        """`hold` counts a job among those that wait, which are bounded; `requeue` puts a job into the queue that is
        computed in slices from then on; `charge` makes a job's caller pay for what the search for it has cost."""
        self.retries: deque[Batch] = deque()
        self._bad_groups = bad_groups
        self._divisions = divisions
        self._limit = limit
        self._min_shared = min_shared
        self._hold = hold
        self._requeue = requeue
        self._charge = charge
        self._suspicion = Suspicion()

    async def succeeded(self, batch: Batch) -> None:
        """Its groups, or a slice, were computed."""
        self._suspicion.something_succeeded()
        if batch.lineage is not None:
            batch.lineage.cost += batch.cost
            await self._follow(batch.lineage, batch.lineage.succeeded())

    async def failed(self, batch: Batch, error: Exception) -> None:
        """The engine raised `error`."""
        if batch.lineage is not None:
            batch.lineage.cost += batch.cost
        if isinstance(error, EngineUnavailableError):
            logger.warning("engine unavailable groups=%d tokens=%d: %s", len(batch.jobs), batch.num_computed, error)
            for job in batch.jobs:
                job.fail(error)
            self.dropped(batch)
        elif isinstance(error, EngineOutOfMemoryError):
            await self._ran_out_of_memory(batch, error)
        elif batch.lineage is not None:
            await self._follow(batch.lineage, batch.lineage.failed(batch.jobs, error))
        else:
            lineage = Lineage(error, is_probe=self._suspicion.is_raised)
            if len(batch.jobs) > 1:
                logger.warning("batch failed groups=%d tokens=%d: %r", len(batch.jobs), batch.num_computed, error)
            await self._follow(lineage, lineage.begin(batch.jobs))

    def dropped(self, batch: Batch) -> None:
        """A part is not computed, or not to an end that says anything of its groups."""
        if batch.lineage is not None:
            verdict = batch.lineage.dropped()
            assert not verdict.culprits, "no culprit is found by what was not computed"
            self._settle(batch.lineage, verdict)

    async def _follow(self, lineage: Lineage, verdict: Verdict) -> None:
        for job, error in verdict.culprits:
            await self._blame(job, error, reason=BadGroupError.reason)
        self._settle(lineage, verdict)

    def _settle(self, lineage: Lineage, verdict: Verdict) -> None:
        self._retry(verdict.parts, lineage)
        if verdict.given_up:
            logger.error("engine failed for everything groups=%d", len(verdict.given_up), exc_info=lineage.error)
        for job, error in verdict.given_up:
            job.fail(failure_of(error))
        if lineage.is_decided and not lineage.is_concluded:  # two parts may end while a culprit is written down
            lineage.is_concluded = True
            self._conclude(lineage)

    def _retry(self, parts: Sequence[Sequence[Job]], lineage: Lineage | None) -> None:
        self.retries.extend(part_of(part, min_shared=self._min_shared, lineage=lineage) for part in parts)
        for job in (job for part in parts for job in part if job.is_awaited):
            self._hold(job)

    def _conclude(self, lineage: Lineage) -> None:
        if not lineage.has_success:
            self._suspicion.batch_failed_wholly()
        elif not lineage.culprits:
            logger.error("batch failed, and its parts did not", exc_info=lineage.error)
        for job in lineage.culprits:
            self._charge(job, lineage.cost / len(lineage.culprits))

    async def _ran_out_of_memory(self, batch: Batch, error: EngineOutOfMemoryError) -> None:
        now = asyncio.get_running_loop().time()
        if len(batch.jobs) > 1:
            self._limit.ran_out_of_memory(batch.cost, now=now)
            if batch.lineage is not None:
                await self._follow(batch.lineage, batch.lineage.divided(batch.jobs))
                return
            middle = len(batch.jobs) // 2
            self._retry((batch.jobs[:middle], batch.jobs[middle:]), None)
            return
        [job] = batch.jobs
        if not batch.is_slice:
            self._limit.ran_out_of_memory(batch.cost, now=now)
        slice_cost = (job.slice_cost or job.forward_cost) / 2
        if slice_cost >= SMALLEST_SLICE and self._divisions.can_divide(job, max_cost=slice_cost):
            self._divisions.restart(job)
            job.slice_cost = slice_cost
            self._requeue(job)
        else:
            await self._blame(job, error, reason=GROUP_TOO_LARGE)
        self.dropped(batch)

    async def _blame(self, job: Job, error: Exception, *, reason: str) -> None:
        incident = uuid.uuid4().hex[:12]
        logger.error(
            "bad group incident=%s reason=%s tenant=%s caller=%s tokens=%d responses=%d top_k=%d",
            incident, reason, job.caller.tenant.name, job.caller.name[:128], job.num_tokens, len(job.group.responses),
            job.group.top_k, exc_info=error,
        )  # fmt: skip
        now = asyncio.get_running_loop().time()
        await self._bad_groups.remember(job.group, revision=job.revision, incident=incident, reason=reason, now=now)
        told = "there is too little memory for" if reason == GROUP_TOO_LARGE else "the model failed for"
        failure = BadGroupError(
            f"{told} this group ({type(error).__name__}); incident {incident} in the server's log says more",
            incident=incident,
            reason=reason,
        )
        failure.__cause__ = error
        job.fail(failure)


def failure_of(error: BaseException) -> EngineFailedError:
    """What a caller is told of a failure that is no fault of the group."""
    failure = EngineFailedError(f"the model failed ({type(error).__name__}); the server's log says more")
    failure.__cause__ = error
    return failure
