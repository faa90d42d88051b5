"""What the engine is working on: its calls in flight, the room beside them, and their outcome. Knows no queue."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from preceptor_server.admission import Admission
from preceptor_server.engines.base import Engine
from preceptor_server.errors import EngineFailedError, EngineUnavailableError
from preceptor_server.job import Job

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Flight:
    """One call of `engine.score`."""

    batch: Sequence[Job]
    num_tokens: int


class Flights:
    """Calls of `engine.score` as tasks, of whole batches or, where the engine batches by itself, of single groups."""

    def __init__(self, engine: Engine, *, admission: Admission, on_landing: Callable[[], None]) -> None:
        info = engine.info()
        self._engine = engine
        self._admission = admission
        self._on_landing = on_landing
        self._batches_itself = info.batches_itself
        self._max_flights = info.max_concurrent_batches
        self._max_tokens = info.max_tokens_in_flight
        self._flights: dict[asyncio.Task[None], _Flight] = {}
        self._num_tokens = 0

    def __len__(self) -> int:
        return len(self._flights)

    @property
    def num_tokens(self) -> int:
        """Tokens in flight."""
        return self._num_tokens

    def has_room_for(self, job: Job, num_tokens: int) -> bool:
        """Whether `job` may start, which adds so many tokens. Beside nothing anything may, however large."""
        if not self._batches_itself:
            return len(self._flights) < self._max_flights
        if not self._flights:
            return True
        is_shared = not job.rides_alone and not any(j.rides_alone for f in self._flights.values() for j in f.batch)
        return is_shared and self._num_tokens + num_tokens <= self._max_tokens

    def start(self, batch: Sequence[Job], *, num_tokens: int) -> None:
        """Hands a batch to the engine. The jobs' `started` and `revision` are set already."""
        flight = _Flight(batch=batch, num_tokens=num_tokens)
        self._num_tokens += flight.num_tokens
        task = asyncio.get_running_loop().create_task(self._fly(flight))
        self._flights[task] = flight
        # Not in the coroutine's `finally`: a task that is cancelled before its first step never reaches that.
        task.add_done_callback(partial(self._land, flight))

    def can_end(self, job: Job) -> bool:
        """Whether the engine can be told to leave off `job` without harm to others."""
        return self._batches_itself and job.started is not None

    def end(self, job: Job) -> None:
        """Tells the engine to leave off what nobody waits for. It keeps its room until the engine has let go."""
        if self.can_end(job):
            for task, flight in self._flights.items():
                if job in flight.batch:
                    task.cancel()

    async def drained(self) -> None:
        """Returns once nothing is in flight."""
        while self._flights:
            await asyncio.wait(self._flights)

    async def _fly(self, flight: _Flight) -> None:
        batch, started = flight.batch, time.monotonic()
        try:
            columns = await self._engine.score([job.group for job in batch])
            if len(columns) != len(batch):
                raise RuntimeError(f"the engine answered {len(columns)} groups of {len(batch)}")
        except EngineUnavailableError as error:
            logger.warning("engine unavailable groups=%d tokens=%d: %s", len(batch), flight.num_tokens, error)
            for job in batch:
                job.fail(error)
        except Exception as error:  # whatever a model raises fails its batch, and nothing else
            logger.exception("engine failed groups=%d tokens=%d", len(batch), flight.num_tokens)
            for job in batch:
                job.fail(_failure(error))
        else:
            seconds = time.monotonic() - started
            # Little's law: what is in flight, over the time that each takes, is what gets done in a second.
            self._admission.observe(self._num_tokens, seconds)
            logger.debug("batch groups=%d tokens=%d seconds=%.3f", len(batch), flight.num_tokens, seconds)
            for job, group_columns in zip(batch, columns, strict=True):
                job.answer(group_columns, forward_seconds=seconds)

    def _land(self, flight: _Flight, task: asyncio.Task[None]) -> None:
        del self._flights[task]
        self._num_tokens -= flight.num_tokens
        forgotten = [job for job in flight.batch if not job.future.done()]
        if forgotten:  # `end` is called for those only who wait no more
            logger.error("engine cancelled its own work groups=%d tokens=%d", len(forgotten), flight.num_tokens)
            for job in forgotten:
                job.fail(_failure(asyncio.CancelledError()))
        self._on_landing()


def _failure(error: BaseException) -> EngineFailedError:
    failure = EngineFailedError(f"the model failed ({type(error).__name__}); the server's log says more")
    failure.__cause__ = error
    return failure
