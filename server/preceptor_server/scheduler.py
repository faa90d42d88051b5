"""Groups score requests into batches under a token budget, for the engine. Knows nothing of gRPC or torch."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from preceptor_server.admission import Admission
from preceptor_server.config import SchedulerConfig
from preceptor_server.engines.base import Engine
from preceptor_server.errors import UnknownTeacherError
from preceptor_server.fair_queue import FairQueue
from preceptor_server.flights import Flights
from preceptor_server.job import Job
from preceptor_server.types import EngineInfo, ScoredGroup, ScoreGroup, num_shared_tokens


class Scheduler:
    """Queues groups, forms batches, and drops what nobody waits for before it costs a forward.

    An engine that batches by itself gets each group alone, and is told to leave off what nobody waits for any more.
    """

    def __init__(self, engine: Engine, config: SchedulerConfig) -> None:
        info = engine.info()
        self._engine = engine
        self._admission = Admission(max_queue_tokens=config.max_queue_tokens)
        self._queue: FairQueue[Job] = FairQueue()
        self._wake = asyncio.Event()
        """Set whenever there may be something to start."""
        self._flights = Flights(engine, admission=self._admission, on_landing=self._wake.set)
        self._min_shared_prefix = info.min_shared_prefix
        self._max_batch_tokens = 0 if info.batches_itself else config.max_batch_tokens
        """0: a batch is one group."""
        self._window_seconds = config.batch_window_ms / 1000
        self._pausing = asyncio.Lock()
        self._is_paused = False
        self._last_started: Job | None = None
        self._loop_task: asyncio.Task[None] | None = None

    @property
    def num_waiting(self) -> int:
        """Groups that wait for a batch."""
        return len(self._queue)

    @property
    def num_waiting_tokens(self) -> int:
        """Tokens of these."""
        return self._queue.num_tokens

    @property
    def num_tokens_in_flight(self) -> int:
        """Tokens that the engine works on."""
        return self._flights.num_tokens

    def start(self) -> None:
        self._loop_task = asyncio.get_running_loop().create_task(self._run(), name="scheduler")

    async def stop(self) -> None:
        """Ends the loop and waits for the batches in flight. Whoever still waits in the queue is cancelled."""
        if self._loop_task is not None:
            self._loop_task.cancel()
            await asyncio.gather(self._loop_task, return_exceptions=True)
        await self._flights.drained()
        while len(self._queue):  # a batch ends at a group that rides alone, so one may not be all
            for job in self._queue.take(self._queue.num_tokens):
                job.future.cancel()

    async def score(
        self, group: ScoreGroup, *, caller: str, timeout_seconds: float | None = None, weight: float = 1.0
    ) -> ScoredGroup:
        """Waits for a batch and returns its columns for `group`. A `weight` below 1 lets other callers go first.

        Raises QueueFullError at once, DeadlinePassedError when the timeout ends in the queue, EngineFailedError when
        the model raised, EngineUnavailableError as the engine raised it. Cancelling the caller takes the group out of
        the queue. Where the engine batches by itself, the timeout and a cancelled caller end its work too.
        """
        now, loop = time.monotonic(), asyncio.get_running_loop()
        self._admission.admit(group.num_tokens, num_waiting_tokens=self._queue.num_tokens)
        job = Job(
            group=group,
            caller=caller,
            deadline=None if timeout_seconds is None else now + timeout_seconds,
            enqueued=now,
            future=loop.create_future(),
            weight=weight,
        )
        timer = None if timeout_seconds is None else loop.call_later(timeout_seconds, self._expire, job)
        self._queue.push(job)
        self._wake.set()
        try:
            return await job.future
        finally:
            if timer is not None:
                timer.cancel()
            self._queue.remove(job)
            self._flights.end(job)
            self._wake.set()  # behind a group that did not fit may stand one that does

    @asynccontextmanager
    async def paused(self) -> AsyncIterator[None]:
        """Nothing is in flight during the block; what arrives waits in the queue, and its deadline counts. A second
        pause waits for the first to end."""
        async with self._pausing:
            self._is_paused = True
            try:
                await self._flights.drained()
                yield
            finally:
                self._is_paused = False
                self._wake.set()

    async def _run(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._may_start():
                if self._queue.num_tokens < self._max_batch_tokens:
                    await asyncio.sleep(self._window_seconds)
                if self._may_start():
                    self._start_batch()

    def _may_start(self) -> bool:
        following = None if self._is_paused else self._queue.peek()
        return following is not None and self._flights.has_room_for(following, self._tokens_more(following))

    def _start_batch(self) -> None:
        # Nothing is awaited between here and the flight, so that a pause sees each group in the queue or in flight.
        taken = self._queue.take(self._max_batch_tokens, cost=self._tokens_beside)
        info = self._engine.info()
        batch = [job for job in taken if job.is_awaited() and _has_adapter(job, info)]
        for job in batch:
            job.started, job.revision = time.monotonic(), info.revision_of(job.group.adapter)
        if batch:
            self._flights.start(batch, num_tokens=self._tokens_more(*batch))
            self._last_started = batch[-1]

    def _expire(self, job: Job) -> None:
        """What is in flight with others is finished for them: its caller gets the answer, if late."""
        if job.started is None or self._flights.can_end(job):
            job.expire()

    def _tokens_more(self, *batch: Job) -> int:
        """What a batch adds to what is in flight. An engine that batches by itself finds the prefix of the group before
        in its cache."""
        if self._max_batch_tokens:
            return sum(job.num_tokens for job in batch)
        return sum(self._tokens_beside(job, self._last_started) for job in batch)

    def _tokens_beside(self, job: Job, previous: Job | None) -> int:
        """What `job` adds to a forward after `previous`: a prefix that the engine computes once is counted once."""
        if previous is None or self._min_shared_prefix is None:
            return job.num_tokens
        shared = num_shared_tokens(previous.group.prompt_ids_P, job.group.prompt_ids_P)
        return job.num_tokens - (shared if shared >= self._min_shared_prefix else 0)


def _has_adapter(job: Job, info: EngineInfo) -> bool:
    """Tells a caller whose adapter was taken away while the group waited."""
    adapter = job.group.adapter
    if not adapter or adapter in info.adapters:
        return True
    gone = f"{adapter!r} was taken away while the group waited"
    job.fail(UnknownTeacherError("adapter", gone, reason="UNKNOWN_ADAPTER"))
    return False
