"""What the engine is working on: tasks, one for each batch, and the room beside them. Knows no queue."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from functools import partial

from preceptor_server.scheduling.batches import Batch
from preceptor_server.scheduling.failures import failure_of
from preceptor_server.scheduling.job import Job
from preceptor_server.types import EngineInfo

logger = logging.getLogger(__name__)


class InFlight:
    """Whole batches or, where the engine batches by itself, single groups."""

    def __init__(
        self,
        info: EngineInfo,
        *,
        compute: Callable[[Batch], Coroutine[None, None, None]],
        on_landing: Callable[[], None],
    ) -> None:
        """`compute` has the engine compute a batch, and tells its callers."""
        self._compute = compute
        self._on_landing = on_landing
        self._batches_itself = info.batches_itself
        self._max_batches = info.max_concurrent_batches
        self._max_tokens = info.max_tokens_in_flight
        self._batches: dict[asyncio.Task[None], Batch] = {}
        self._tasks: dict[Job, asyncio.Task[None]] = {}
        self._num_tokens = 0
        self._cost = 0.0

    def __len__(self) -> int:
        return len(self._batches)

    @property
    def num_tokens(self) -> int:
        """Tokens in flight."""
        return self._num_tokens

    @property
    def num_groups(self) -> int:
        """Groups in flight."""
        return len(self._tasks)

    @property
    def cost(self) -> float:
        """Of all that is in flight."""
        return self._cost

    @property
    def has_room(self) -> bool:
        """Whether one more batch may start, of an engine that does not batch by itself."""
        return len(self._batches) < self._max_batches

    def has_room_for(self, job: Job, num_tokens: int) -> bool:
        """Whether `job` may start, of so many tokens, where the engine batches by itself. Beside nothing anything may,
        however large."""
        if not self._batches:
            return True
        is_shared = not job.is_exclusive and not any(batch.is_exclusive for batch in self._batches.values())
        return is_shared and self._num_tokens + num_tokens <= self._max_tokens

    def start(self, batch: Batch) -> None:
        """Hands a batch to the engine. The jobs' `started` and `revision` are set already."""
        self._num_tokens += batch.num_computed
        self._cost += batch.cost
        task = asyncio.get_running_loop().create_task(self._compute(batch), name="batch")
        self._batches[task] = batch
        self._tasks.update(dict.fromkeys(batch.jobs, task))
        # Not in the coroutine's `finally`: a task that is cancelled before its first step never reaches that.
        task.add_done_callback(partial(self._land, batch))

    def __contains__(self, job: Job) -> bool:
        return job in self._tasks

    def can_end(self, job: Job) -> bool:
        """Whether the engine can be told to leave off `job` without harm to others."""
        return self._batches_itself and job in self._tasks

    def end(self, job: Job) -> None:
        """Tells the engine to leave off what nobody waits for. It keeps its room until the engine has let go."""
        if self.can_end(job):
            self._tasks[job].cancel()

    async def drained(self) -> None:
        """Returns once nothing is in flight."""
        while self._batches:
            await asyncio.wait(self._batches)

    def _land(self, batch: Batch, task: asyncio.Task[None]) -> None:
        del self._batches[task]
        for job in batch.jobs:
            if self._tasks.get(job) is task:  # its next slice may be in flight already
                del self._tasks[job]
        self._num_tokens -= batch.num_computed
        self._cost = self._cost - batch.cost if self._batches else 0.0
        if task.cancelled():
            forgotten = [job for job in batch.jobs if job.is_awaited]
            if forgotten:  # `end` is called for those only who wait no more
                logger.error("engine cancelled its own work groups=%d tokens=%d", len(forgotten), batch.num_computed)
                for job in forgotten:
                    job.fail(failure_of(asyncio.CancelledError()))
        elif (error := task.exception()) is not None:  # a fault of ours: nobody may be left waiting
            logger.error("batch lost groups=%d", len(batch.jobs), exc_info=error)
            for job in batch.jobs:
                job.fail(failure_of(error))
        self._on_landing()
