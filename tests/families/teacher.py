"""A teacher in this process, behind a real socket: as `preceptor_server.app` puts it together, without a tokenizer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from preceptor_server.config import LimitsConfig, ListenConfig, SchedulerConfig
from preceptor_server.edges.grpc.server import add_services, bind, build_server
from preceptor_server.edges.grpc.servicer import TeacherServicer
from preceptor_server.engines.base import Engine
from preceptor_server.engines.building import build_engine
from preceptor_server.engines.config import HfConfig
from preceptor_server.hosted import HostedTeacher
from preceptor_server.scheduling.scheduler import Scheduler
from preceptor_server.serving import ScoreService
from preceptor_server.settling import settle_engine
from preceptor_server.teachers import Teachers
from preceptor_server.weights import WeightUpdates

from tests.families.small import MAX_MODEL_LEN

_SELF_TEST_SECONDS = 60
_BATCH_WINDOW_MS = 30.0
"""Long enough for all that a test asks at once to be one batch."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunningTeacher:
    """Answers at `address`."""

    address: str
    packing: str
    """What the engine chose: packed or sequential."""


@asynccontextmanager
async def running_teacher(folder: Path) -> AsyncIterator[RunningTeacher]:
    """For the length of the block. Raises StartupError where the server refuses to start."""
    engine = build_engine(HfConfig(model=str(folder), device="cpu", max_model_len=MAX_MODEL_LEN), None)
    try:
        packing = await _start(engine)
        async with _serving(engine) as address:
            yield RunningTeacher(address=address, packing=packing)
    finally:
        await asyncio.to_thread(engine.close)


async def _start(engine: Engine) -> str:
    """Loads the engine and tests it, as the server does at its start; returns the packing that it came to."""
    await asyncio.to_thread(engine.load)
    await settle_engine(engine, seconds=_SELF_TEST_SECONDS)
    return engine.info().packing


@asynccontextmanager
async def _serving(engine: Engine) -> AsyncIterator[str]:
    listen, limits, queue = ListenConfig(port=0), LimitsConfig(), SchedulerConfig(batch_window_ms=_BATCH_WINDOW_MS)
    server, scheduler = build_server(listen, max_message_bytes=limits.max_message_bytes), Scheduler(engine, queue)
    address = bind(server, listen)
    scheduler.start()
    teacher = HostedTeacher(
        name="teacher",
        engine=engine,
        tokenizer=None,
        aligner=None,
        scheduler=scheduler,
        limits=limits,
        max_queue_tokens=queue.max_queue_tokens,
    )
    add_services(server, TeacherServicer(ScoreService(Teachers([teacher])), WeightUpdates()))
    await server.start()
    try:
        yield address
    finally:
        await server.stop(None)
        await scheduler.stop()
