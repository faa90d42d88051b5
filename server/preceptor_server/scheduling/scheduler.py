"""Groups score requests into batches under a token budget, for the engine. Knows nothing of transports or torch."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, nullcontext

from preceptor_server.callers import Caller
from preceptor_server.engines.base import Engine
from preceptor_server.errors import DrainingError, QueueFullError, reason_of
from preceptor_server.observability.observer import CANCELLED, OK, BatchObserver
from preceptor_server.observability.tracing import NO_TRACING, Tracing
from preceptor_server.scheduling.admission import Admission, Waiting
from preceptor_server.scheduling.bad_groups import BadGroups
from preceptor_server.scheduling.batch_limit import BatchLimit
from preceptor_server.scheduling.batches import Batch, BatchTaker, part_of
from preceptor_server.scheduling.config import SchedulerConfig
from preceptor_server.scheduling.costs import SharedPrefixes
from preceptor_server.scheduling.device_turns import DeviceTurns
from preceptor_server.scheduling.divisions import Divisions
from preceptor_server.scheduling.failures import Failures, failure_of
from preceptor_server.scheduling.fair_queue import FairQueue
from preceptor_server.scheduling.forwards import Forwards
from preceptor_server.scheduling.in_flight import InFlight
from preceptor_server.scheduling.job import Job
from preceptor_server.scheduling.speed import Speed
from preceptor_server.types import EngineInfo, ScoredGroup, ScoreGroup

logger = logging.getLogger(__name__)

_DRAINING_RETRY_SECONDS = 1.0
"""When to ask again, if there is no other server: a new one may have taken this one's place."""


class Scheduler:
    """Queues groups, forms batches, and drops what nobody waits for before it costs a forward.

    An engine that batches by itself gets each group alone, and is told to leave off what nobody waits for any more.
    """

    def __init__(
        self,
        engine: Engine,
        config: SchedulerConfig,
        *,
        observers: Sequence[BatchObserver] = (),
        tracing: Tracing = NO_TRACING,
        teacher: str = "",
        turns: DeviceTurns | None = None,
        weight: float = 1.0,
    ) -> None:
        """`teacher` is the name that traces show, and by which it takes `turns` with other teachers of the process, by
        its `weight`; without them its forwards wait for nobody."""
        info = engine.info()
        max_tokens = 0 if info.batches_itself else config.max_batch_tokens
        self._engine = engine
        self._batches_itself = info.batches_itself
        self._context_costs = info.context_costs
        self._tracing = tracing
        self._window_seconds = config.batch_window_ms / 1000
        self._queue: FairQueue[Job] = FairQueue()
        self._speed = Speed()
        self._admission = Admission(config, self._speed)
        self._bad_groups = BadGroups(seconds=config.bad_group_seconds)
        self._limit = BatchLimit(max_tokens)
        self._divisions = Divisions(engine, max_cost=max_tokens, max_open=config.max_divided_groups)
        self._failures = Failures(
            bad_groups=self._bad_groups,
            divisions=self._divisions,
            limit=self._limit,
            min_shared=info.min_shared_prefix,
            hold=self._admission.hold,
            requeue=self._enqueue,
            charge=self._charge,
        )
        forwards = Forwards(
            engine,
            divisions=self._divisions,
            failures=self._failures,
            limit=self._limit,
            speed=self._speed,
            observers=observers,
            turn=lambda batch: nullcontext() if turns is None else turns.turn(teacher, weight=weight, cost=batch.cost),
            begin_span=lambda batch: tracing.batch([job.wait for job in batch.jobs], teacher=teacher),
            requeue=self._enqueue,
            charge=self._charge,
            cost_in_flight=lambda: self._in_flight.cost,
        )
        self._in_flight = InFlight(info, compute=forwards.compute, on_landing=self._changed)
        self._taker = BatchTaker(
            self._queue, limit=self._limit, divisions=self._divisions, min_shared=info.min_shared_prefix
        )
        self._prefixes = SharedPrefixes(min_shared=info.min_shared_prefix)
        """Of what an engine was given that batches by itself, and finds them in its cache."""
        self._jobs: set[Job] = set()
        """All that somebody waits for."""
        self._idle_since: float | None = None
        self._wake = asyncio.Event()
        """Set whenever there may be something to start."""
        self._progress = asyncio.Event()
        """Set whenever something was answered, or left."""
        self._pausing = asyncio.Lock()
        self._is_paused = False
        self._is_draining = False
        self._is_retry_next = True
        self._loop_task: asyncio.Task[None] | None = None

    @property
    def num_waiting(self) -> int:
        """Groups that wait for a forward, but for those between two slices."""
        return self._admission.total.groups

    @property
    def num_waiting_tokens(self) -> int:
        """Tokens of these."""
        return self._admission.total.tokens

    @property
    def num_waiting_bytes(self) -> int:
        """Bytes of these."""
        return self._admission.total.num_bytes

    @property
    def num_groups_in_flight(self) -> int:
        """Groups that the engine works on."""
        return self._in_flight.num_groups

    @property
    def num_tokens_in_flight(self) -> int:
        """Tokens that the engine works on."""
        return self._in_flight.num_tokens

    @property
    def tokens_per_second(self) -> float | None:
        """Computed tokens, as measured lately; None before the first batch."""
        return self._speed.per_second

    def waiting_by_tenant(self) -> Mapping[str, Waiting]:
        """What of this is of which tenant, of tenants of whom something is."""
        return self._admission.by_tenant

    def start(self) -> None:
        self._loop_task = asyncio.get_running_loop().create_task(self._run(), name="scheduler")
        self._loop_task.add_done_callback(self._loop_ended)

    async def drain(self, seconds: float) -> None:
        """Takes nothing new, and returns once everything is answered; after `seconds` what is not is told
        DrainingError."""
        self._is_draining = True
        try:
            async with asyncio.timeout(seconds):
                while self._jobs:
                    self._progress.clear()
                    await self._progress.wait()
        except TimeoutError:
            self._give_up()

    async def stop(self) -> None:
        """Ends the loop and waits for the batches in flight, and for a pause that has begun. Whoever still waits in the
        queue is told DrainingError."""
        self._is_draining = True
        loop_task, self._loop_task = self._loop_task, None
        if loop_task is not None:
            loop_task.cancel()
            await asyncio.gather(loop_task, return_exceptions=True)
        self._give_up(but_in_flight=True)
        await self._in_flight.drained()
        self._give_up()
        async with self._pausing:  # the engine is not closed while it takes new weights
            pass

    async def score(self, group: ScoreGroup, *, caller: Caller, timeout_seconds: float | None = None) -> ScoredGroup:
        """Waits for a batch and returns its columns for `group`.

        Raises QueueFullError, DrainingError, and BadGroupError for a group that failed before, at once;
        DeadlinePassedError when the timeout ends in the queue; BadGroupError when the model raises for this group,
        EngineFailedError when it raises for everything, EngineUnavailableError as the engine raised it. Cancelling the
        caller takes the group out of the queue. Where the engine batches by itself, the timeout and a cancelled caller
        end its work too.
        """
        loop = asyncio.get_running_loop()
        enqueued = loop.time()
        await self._bad_groups.check(group, revision=self._revision_of(group), now=enqueued)
        self._refuse_while_draining()
        job = Job(
            group=group,
            caller=caller,
            deadline=None if timeout_seconds is None else enqueued + timeout_seconds,
            enqueued=enqueued,
            future=loop.create_future(),
            context_costs=self._context_costs,
            wait=self._tracing.queued(),
        )
        try:
            self._admission.admit(job, now=loop.time())
        except QueueFullError as error:
            job.wait.dropped(error.reason)
            raise
        self._pay_debts(loop.time())
        self._jobs.add(job)
        timer = None if job.deadline is None else loop.call_at(job.deadline, self._expire, job)
        try:
            self._enqueue(job)
            self._wake.set()
            return await job.future
        finally:
            if timer is not None:
                timer.cancel()
            self._leave(job)
            del job  # whose future holds the error, whose frames would hold the job: until Python looks for cycles

    @asynccontextmanager
    async def paused(self) -> AsyncIterator[None]:
        """Nothing is in flight during the block; what arrives waits in the queue, and its deadline counts. A second
        pause waits for the first to end. Raises DrainingError."""
        async with self._pausing:
            self._refuse_while_draining()
            self._is_paused = True
            try:
                await self._in_flight.drained()
                yield
            finally:
                self._is_paused = False
                self._wake.set()

    async def _run(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._may_start():
                if self._has_time_for_company():
                    await asyncio.sleep(self._window_seconds)
                if self._may_start():
                    self._start_batch()

    def _loop_ended(self, task: asyncio.Task[None]) -> None:
        """By a fault of ours: nobody may be left waiting for it, and it begins anew."""
        if task is not self._loop_task or (error := task.exception()) is None:
            return
        logger.critical("scheduler failed groups=%d", len(self._jobs), exc_info=error)
        for job in [job for job in self._jobs if job not in self._in_flight]:
            job.fail(failure_of(error))
        self.start()

    def _may_start(self) -> bool:
        if self._is_paused:
            return False
        if self._batches_itself:
            following = self._queue.first()
            return following is not None and self._in_flight.has_room_for(following, self._tokens_more(following))
        return self._in_flight.has_room and bool(len(self._queue) or self._failures.retries)

    def _has_time_for_company(self) -> bool:
        """Whether a batch would not be full."""
        if self._batches_itself or self._failures.retries:
            return False
        following = self._queue.first()
        is_alone = following is not None and self._divisions.divides(following)
        return not is_alone and self._admission.total.tokens < self._limit.configured

    def _start_batch(self) -> None:
        # Nothing is awaited between here and the flight, so that a pause sees each group in the queue or in flight.
        info, now = self._engine.info(), asyncio.get_running_loop().time()
        batch = self._next_batch(info, now)
        if batch is None:
            return
        for job in batch.jobs:
            self._admission.release(job)
            self._set_out(job, info, now)
        self._in_flight.start(batch)

    def _next_batch(self, info: EngineInfo, now: float) -> Batch | None:
        """What is computed again takes turns with what waits."""

        def is_usable(job: Job) -> bool:
            job.expire_if_late(now)
            job.fail_without_adapter(info)
            return job.is_awaited

        if self._batches_itself:
            return self._take_one(is_usable)
        if self._failures.retries and (self._is_retry_next or not len(self._queue)):
            self._is_retry_next = False
            return self._take_retry(is_usable, min_shared=info.min_shared_prefix)
        self._is_retry_next = True
        return self._taker.take(now=now, is_usable=is_usable)

    def _take_one(self, is_usable: Callable[[Job], bool]) -> Batch | None:
        """For an engine that batches by itself."""
        job = self._queue.first()
        assert job is not None, "asked only where something waits"
        if not is_usable(job):
            self._queue.remove(job)
            return None
        num_tokens = self._tokens_more(job)
        cost = job.cost_beyond(job.num_tokens - num_tokens)
        self._queue.take(job, cost=cost)
        self._prefixes.add(job.group)
        return Batch(jobs=(job,), computed=(num_tokens,), cost=cost)

    def _take_retry(self, is_usable: Callable[[Job], bool], *, min_shared: int | None) -> Batch | None:
        part = self._failures.retries.popleft()
        jobs = [job for job in part.jobs if is_usable(job)]
        if jobs:
            return part_of(jobs, min_shared=min_shared, lineage=part.lineage)
        self._failures.dropped(part)
        return None

    def _set_out(self, job: Job, info: EngineInfo, now: float) -> None:
        revision = info.revision_of(job.group.adapter)
        if job.division is not None and job.revision != revision:
            self._divisions.restart(job)  # half of it by the old weights and half by the new would be nobody's opinion
        job.revision = revision
        if job.started is None:
            job.started = now

    def _enqueue(self, job: Job) -> None:
        """A large one may have to wait for a place first."""
        job.expire_if_late(asyncio.get_running_loop().time())
        if not job.is_awaited:
            return
        if not self._divisions.divides(job) or self._divisions.reserve(job):
            self._queue.push(job)
        else:
            self._admission.hold(job)

    def _charge(self, job: Job, cost: float) -> None:
        self._queue.charge(job.caller, cost)

    def _leave(self, job: Job) -> None:
        """Nobody waits for it any more."""
        self._jobs.discard(job)
        job.wait.dropped(_reason_of(job))
        self._admission.release(job)
        self._queue.remove(job)
        for admitted in self._divisions.release(job):
            self._queue.push(admitted)
        self._in_flight.end(job)
        self._changed()  # behind a group that did not fit may stand one that does

    def _changed(self) -> None:
        if self._idle_since is None and not self._jobs and not len(self._in_flight):
            self._idle_since = asyncio.get_running_loop().time()
        self._wake.set()
        self._progress.set()

    def _pay_debts(self, now: float) -> None:
        """For the time in which nobody waited for anything, and nothing was in flight."""
        if self._idle_since is not None and self._speed.per_second is not None:
            self._queue.pay_debts((now - self._idle_since) * self._speed.per_second)
        self._idle_since = None

    def _expire(self, job: Job) -> None:
        """What is in flight with others is finished for them: its caller gets the answer, if late."""
        if job not in self._in_flight or self._in_flight.can_end(job):
            job.expire_if_late(asyncio.get_running_loop().time())

    def _give_up(self, *, but_in_flight: bool = False) -> None:
        for job in list(self._jobs):
            if not (but_in_flight and job in self._in_flight):
                job.fail(_draining())
        self._failures.retries.clear()

    def _refuse_while_draining(self) -> None:
        if self._is_draining:
            raise _draining()

    def _revision_of(self, group: ScoreGroup) -> str:
        """That would score it now; an adapter may have been taken away."""
        info = self._engine.info()
        return info.adapters.get(group.adapter, "") if group.adapter else info.revision

    def _tokens_more(self, job: Job) -> int:
        """What a group adds to what is in flight."""
        return job.num_tokens - self._prefixes.num_shared(job.group)


def _reason_of(job: Job) -> str:
    """Why nobody waits for it any more."""
    if job.future.cancelled() or not job.future.done():
        return CANCELLED
    error = job.future.exception()
    return OK if error is None else reason_of(error)


def _draining() -> DrainingError:
    return DrainingError(retry_after_seconds=_DRAINING_RETRY_SECONDS)
