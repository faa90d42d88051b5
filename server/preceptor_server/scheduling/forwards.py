"""Has the engine compute one batch, or one slice, and sees to what follows: answers, failures, observers."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager

from preceptor_server.engines.base import Engine
from preceptor_server.errors import ServerError
from preceptor_server.observability.observer import OK, BatchDone, BatchObserver
from preceptor_server.observability.tracing import BatchSpan
from preceptor_server.scheduling.batch_limit import BatchLimit
from preceptor_server.scheduling.batches import Batch, part_of
from preceptor_server.scheduling.divisions import Divisions
from preceptor_server.scheduling.failures import Failures, failure_of
from preceptor_server.scheduling.job import Job
from preceptor_server.scheduling.speed import Speed
from preceptor_server.types import EngineInfo, GroupColumns

logger = logging.getLogger(__name__)


class Forwards:
    """One forward for each call of `compute`."""

    def __init__(
        self,
        engine: Engine,
        *,
        divisions: Divisions,
        failures: Failures,
        limit: BatchLimit,
        speed: Speed,
        observers: Sequence[BatchObserver],
        begin_span: Callable[[Batch], BatchSpan],
        turn: Callable[[Batch], AbstractAsyncContextManager[None]],
        requeue: Callable[[Job], None],
        charge: Callable[[Job, float], None],
        cost_in_flight: Callable[[], float],
    ) -> None:
        """`requeue` puts a job back that has more slices; `charge` corrects what a slice was taken for; `begin_span`
        shows a forward in the traces of its calls; `turn` waits for the machine, which other teachers may share."""
        self._engine = engine
        self._divisions = divisions
        self._failures = failures
        self._limit = limit
        self._speed = speed
        self._observers = tuple(observers)
        self._begin_span = begin_span
        self._turn = turn
        self._requeue = requeue
        self._charge = charge
        self._cost_in_flight = cost_in_flight

    async def compute(self, batch: Batch) -> None:
        """Everybody who waits for the batch is told, or computed again. What nobody waits for when the turn has come
        costs no forward."""
        async with self._turn(batch):
            info = self._engine.info()
            jobs = _awaited(batch, info)
            if not jobs:
                self._failures.dropped(batch)
                return
            if len(jobs) < len(batch.jobs):
                batch = part_of(jobs, min_shared=info.min_shared_prefix, lineage=batch.lineage)
            span = self._begin_span(batch)
            if batch.is_slice:
                await self._compute_slice(batch, span)
            else:
                for job in jobs:
                    job.revision = info.revision_of(job.group.adapter)
                await self._compute_groups(batch, span)

    async def _compute_groups(self, batch: Batch, span: BatchSpan) -> None:
        started = _now()
        try:
            columns = await self._engine.score([job.group for job in batch.jobs])
            if len(columns) != len(batch.jobs):
                raise RuntimeError(f"the engine answered {len(columns)} groups of {len(batch.jobs)}")
        except asyncio.CancelledError:
            self._failures.dropped(batch)  # else the other parts of a failed batch would wait for this one's verdict
            raise
        except Exception as error:  # noqa: BLE001  whatever a model raises is looked into, and told
            self._tell(batch, span, batch.computed, seconds=_now() - started, error=error)
            await self._failures.failed(batch, error)
            return
        seconds = _now() - started
        # Little's law: what is in flight, over the time that each takes, is what gets done in a second.
        self._speed.observe(self._cost_in_flight(), seconds)
        self._tell(batch, span, batch.computed, seconds=seconds, error=None)
        for job, group_columns in zip(batch.jobs, columns, strict=True):
            job.answer(group_columns, seconds=seconds)
        await self._failures.succeeded(batch)

    async def _compute_slice(self, batch: Batch, span: BatchSpan) -> None:
        [job] = batch.jobs
        started = _now()
        num_tokens, cost = 0, 0.0
        try:
            division = self._divisions.open(job)
            num_tokens, cost = division.next_tokens, self._divisions.estimate(job)
            columns = await division.advance()
        except Exception as error:  # noqa: BLE001  whatever a model raises is looked into, and told
            self._tell(batch, span, (num_tokens,), seconds=_now() - started, error=error)
            if not job.is_awaited:
                # Its division was closed under it: what that raises says nothing of the group.
                logger.warning("slice failed after its caller had left: %r", error)
                return
            self._divisions.restart(job)
            await self._failures.failed(batch, error)
            return
        seconds = _now() - started
        self._charge(job, cost - batch.cost)
        self._speed.observe(self._cost_in_flight() - batch.cost + cost, seconds)
        self._tell(batch, span, (num_tokens,), seconds=seconds, error=None)
        await self._failures.succeeded(batch)
        self._follow_up(job, columns, seconds=seconds)

    def _follow_up(self, job: Job, columns: GroupColumns | None, *, seconds: float) -> None:
        if columns is not None:
            job.answer(columns, seconds=seconds)
        elif job.is_awaited:
            job.forward_seconds += seconds
            self._requeue(job)

    def _tell(
        self, batch: Batch, span: BatchSpan, computed: tuple[int, ...], *, seconds: float, error: Exception | None
    ) -> None:
        num_tokens = computed[0] if batch.is_slice else sum(job.num_tokens for job in batch.jobs)
        logger.debug("batch groups=%d tokens=%d seconds=%.3f", len(batch.jobs), sum(computed), seconds)
        computed_by_tenant: Counter[str] = Counter()
        for job, tokens in zip(batch.jobs, computed, strict=True):
            computed_by_tenant[job.caller.tenant.name] += tokens
        done = BatchDone(
            num_groups=len(batch.jobs),
            num_tokens=num_tokens,
            num_reused_tokens=num_tokens - sum(computed),
            max_tokens=self._limit.configured,
            seconds=seconds,
            reason=OK if error is None else _reason_of(error),
            computed_by_tenant=computed_by_tenant,
        )
        span.done(done)
        for observer in self._observers:
            observer.batch_done(done)


def _awaited(batch: Batch, info: EngineInfo) -> list[Job]:
    """The turn may have come late: what can be answered still, and is waited for."""
    for job in batch.jobs:
        job.expire_if_late(_now())
        job.fail_without_adapter(info)
    return [job for job in batch.jobs if job.is_awaited]


def _reason_of(error: Exception) -> str:
    return error.reason if isinstance(error, ServerError) else failure_of(error).reason


def _now() -> float:
    return asyncio.get_running_loop().time()
