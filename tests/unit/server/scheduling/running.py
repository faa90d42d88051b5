"""A running scheduler for tests, and calls that are in its queue when a test goes on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import asynccontextmanager
from typing import Any

from preceptor_server.config import SchedulerConfig
from preceptor_server.observability.observer import BatchObserver
from preceptor_server.scheduling.scheduler import Scheduler
from preceptor_server.types import ScoredGroup, ScoreGroup

from tests.unit.server.callers import caller_of
from tests.unit.server.groups import group_of_size
from tests.unit.server.scripted_engine import ScriptedEngine

BATCH_TOKENS = 100


@asynccontextmanager
async def running(
    engine: ScriptedEngine,
    *,
    max_queue_tokens: int = 10_000,
    batch_window_ms: float = 0.0,
    bad_group_seconds: float = 300.0,
    observers: Sequence[BatchObserver] = (),
) -> AsyncIterator[Scheduler]:
    config = SchedulerConfig(
        max_batch_tokens=BATCH_TOKENS,
        max_queue_tokens=max_queue_tokens,
        batch_window_ms=batch_window_ms,
        bad_group_seconds=bad_group_seconds,
    )
    scheduler = Scheduler(engine, config, observers=observers)
    scheduler.start()
    try:
        yield scheduler
    finally:
        engine.gate.set()
        await scheduler.stop()


async def let_things_happen() -> None:
    """Time enough for the scheduler to do what it should not."""
    for _ in range(20):
        await asyncio.sleep(0)


async def begin(call: Coroutine[Any, Any, ScoredGroup]) -> asyncio.Task[ScoredGroup]:
    """Starts a call, and lets it reach the queue."""
    task = asyncio.create_task(call)
    await asyncio.sleep(0)
    return task


async def occupy(engine: ScriptedEngine, scheduler: Scheduler) -> asyncio.Task[ScoredGroup]:
    """Keeps the engine busy with a batch, so that what follows waits in the queue."""
    task = await begin(scheduler.score(group_of_size(2), caller=caller_of("occupier")))
    await engine.has_begun(1)
    return task


def sizes(batches: list[list[ScoreGroup]]) -> list[list[int]]:
    return [[group.num_tokens for group in batch] for batch in batches]
