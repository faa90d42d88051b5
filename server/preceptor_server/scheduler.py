"""Groups score requests into batches under a token budget, for the engine. Knows nothing of gRPC or torch."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from preceptor_server.admission import Admission
from preceptor_server.config import SchedulerConfig
from preceptor_server.engines.base import Engine
from preceptor_server.errors import DeadlinePassedError, EngineFailedError
from preceptor_server.fair_queue import FairQueue
from preceptor_server.types import GroupColumns, ScoredGroup, ScoreGroup, num_shared_tokens

logger = logging.getLogger(__name__)


@dataclass(eq=False, slots=True, kw_only=True)
class _Job:
    group: ScoreGroup
    caller: str
    deadline: float | None  # of time.monotonic()
    enqueued: float
    future: asyncio.Future[ScoredGroup]
    num_tokens: int = field(init=False)

    def __post_init__(self) -> None:
        self.num_tokens = self.group.num_tokens

    @property
    def rides_alone(self) -> bool:
        return self.group.batch_invariant


class Scheduler:
    """Queues groups, forms batches, and drops what nobody waits for before it costs a forward."""

    def __init__(self, engine: Engine, config: SchedulerConfig) -> None:
        self._engine = engine
        self._config = config
        self._admission = Admission(max_queue_tokens=config.max_queue_tokens)
        self._queue: FairQueue[_Job] = FairQueue()
        self._has_work = asyncio.Event()
        self._may_dispatch = asyncio.Event()
        self._may_dispatch.set()
        info = engine.info()
        self._min_shared_prefix = info.min_shared_prefix
        self._slots = asyncio.Semaphore(info.max_concurrent_batches)
        self._loop_task: asyncio.Task[None] | None = None
        self._batch_tasks: set[asyncio.Task[None]] = set()

    @property
    def num_waiting(self) -> int:
        """Groups that wait for a batch."""
        return len(self._queue)

    def start(self) -> None:
        self._loop_task = asyncio.get_running_loop().create_task(self._run(), name="scheduler")

    async def stop(self) -> None:
        """Ends the loop and waits for the batches in flight. Whoever still waits in the queue is cancelled."""
        if self._loop_task is not None:
            self._loop_task.cancel()
            await asyncio.gather(self._loop_task, return_exceptions=True)
        await asyncio.gather(*self._batch_tasks, return_exceptions=True)
        while len(self._queue):  # a batch ends at a group that rides alone, so one may not be all
            for job in self._queue.take(self._queue.num_tokens):
                job.future.cancel()

    async def score(self, group: ScoreGroup, *, caller: str, timeout_seconds: float | None = None) -> ScoredGroup:
        """Waits for a batch and returns its columns for `group`.

        Raises QueueFullError at once, DeadlinePassedError when the timeout ends in the queue, EngineFailedError when
        the model raised. Cancelling the caller takes the group out of the queue.
        """
        now = time.monotonic()
        self._admission.admit(group.num_tokens, num_waiting_tokens=self._queue.num_tokens)
        job = _Job(
            group=group,
            caller=caller,
            deadline=None if timeout_seconds is None else now + timeout_seconds,
            enqueued=now,
            future=asyncio.get_running_loop().create_future(),
        )
        self._queue.push(job)
        self._has_work.set()
        try:
            return await job.future
        finally:
            self._queue.remove(job)

    @asynccontextmanager
    async def paused(self) -> AsyncIterator[None]:
        """Dispatches nothing inside this block, which begins once nothing is in flight."""
        self._may_dispatch.clear()
        try:
            while self._batch_tasks:
                await asyncio.wait(set(self._batch_tasks))
            yield
        finally:
            self._may_dispatch.set()

    async def _run(self) -> None:
        while True:
            await self._slots.acquire()
            batch = await self._next_batch()
            await self._may_dispatch.wait()
            task = asyncio.get_running_loop().create_task(self._score_batch(batch))
            self._batch_tasks.add(task)
            task.add_done_callback(self._batch_tasks.discard)

    async def _next_batch(self) -> list[_Job]:
        while True:
            await self._has_work.wait()
            if self._queue.num_tokens < self._config.max_batch_tokens:
                await asyncio.sleep(self._config.batch_window_ms / 1000)
            taken = self._queue.take(self._config.max_batch_tokens, cost=self._tokens_beside)
            if not len(self._queue):
                self._has_work.clear()
            batch = [job for job in taken if _is_awaited(job)]
            if batch:
                return batch

    def _tokens_beside(self, job: _Job, previous: _Job | None) -> int:
        """What `job` adds to a forward after `previous`: a prefix that the engine computes once is counted once."""
        if previous is None or self._min_shared_prefix is None:
            return job.num_tokens
        shared = num_shared_tokens(previous.group.prompt_ids_P, job.group.prompt_ids_P)
        return job.num_tokens - (shared if shared >= self._min_shared_prefix else 0)

    async def _score_batch(self, batch: Sequence[_Job]) -> None:
        started = time.monotonic()
        num_tokens = sum(job.num_tokens for job in batch)
        info = self._engine.info()
        try:
            columns = await self._engine.score([job.group for job in batch])
            if len(columns) != len(batch):
                raise RuntimeError(f"the engine answered {len(columns)} groups of {len(batch)}")
        except Exception as error:  # whatever a model raises fails its batch, and nothing else
            logger.exception("engine failed groups=%d tokens=%d", len(batch), num_tokens)
            _fail(batch, error)
        else:
            seconds = time.monotonic() - started
            self._admission.observe(num_tokens, seconds)
            logger.debug("batch groups=%d tokens=%d seconds=%.3f", len(batch), num_tokens, seconds)
            revisions = [info.revision_of(job.group.adapter) for job in batch]
            _answer(batch, columns, revisions, started=started, seconds=seconds)
        finally:
            self._slots.release()


def _is_awaited(job: _Job) -> bool:
    """Whether somebody still waits; tells a caller whose deadline passed in the queue."""
    if job.future.done():
        return False
    if job.deadline is not None and time.monotonic() >= job.deadline:
        waited = time.monotonic() - job.enqueued
        job.future.set_exception(DeadlinePassedError(f"the deadline passed after {waited:.1f} s in the queue"))
        return False
    return True


def _answer(
    batch: Sequence[_Job], columns: Sequence[GroupColumns], revisions: Sequence[str], *, started: float, seconds: float
) -> None:
    for job, group_columns, revision in zip(batch, columns, revisions, strict=True):
        if not job.future.done():
            queue_ms = (started - job.enqueued) * 1000
            job.future.set_result(
                ScoredGroup(columns=group_columns, revision=revision, queue_ms=queue_ms, forward_ms=seconds * 1000)
            )


def _fail(batch: Sequence[_Job], error: Exception) -> None:
    for job in batch:
        if not job.future.done():
            failure = EngineFailedError(f"the model failed ({type(error).__name__}); the server's log says more")
            failure.__cause__ = error
            job.future.set_exception(failure)
