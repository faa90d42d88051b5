"""What a scheduler tells of itself: each forward, and what waits by tenant."""

from __future__ import annotations

import asyncio

import pytest
from preceptor_server.observability.observer import BatchDone
from preceptor_server.scheduling.admission import Waiting
from preceptor_server.scheduling.config import SchedulerConfig
from preceptor_server.scheduling.scheduler import Scheduler

from tests.unit.server.callers import caller_of
from tests.unit.server.groups import group_of, group_of_size
from tests.unit.server.scheduling.running import BATCH_TOKENS, begin, occupy, running
from tests.unit.server.scheduling.simulated import DividingEngine
from tests.unit.server.scripted_engine import ScriptedEngine


class Noted:
    """A BatchObserver."""

    def __init__(self) -> None:
        self.done: list[BatchDone] = []

    def batch_done(self, done: BatchDone) -> None:
        self.done.append(done)


async def test_each_forward_is_told_with_what_was_computed_and_what_was_not() -> None:
    engine, noted = ScriptedEngine(is_open=False, min_shared_prefix=16), Noted()
    async with running(engine, observers=[noted]) as scheduler:
        occupier = await occupy(engine, scheduler)
        calls = [
            await begin(scheduler.score(group_of([7] * 20, [i, i]), caller=caller_of(name, tenant=tenant)))
            for i, (name, tenant) in enumerate([("a", "t"), ("b", "t"), ("c", "u")])
        ]
        engine.gate.set()
        await asyncio.gather(occupier, *calls)
    first, second = noted.done
    assert (first.num_groups, first.num_tokens, first.reason) == (1, 2, "ok")
    assert (second.num_groups, second.num_tokens, second.num_reused_tokens) == (3, 66, 40)
    assert second.max_tokens == BATCH_TOKENS
    assert second.seconds >= 0
    # t and u take turns: t's first computes the prompt.
    assert dict(second.computed_by_tenant) == {"t": 24, "u": 2}


async def test_forward_that_raises_is_told_with_its_reason() -> None:
    engine, noted = ScriptedEngine(), Noted()
    engine.errors.append(RuntimeError("no"))
    async with running(engine, observers=[noted]) as scheduler:
        calls = (scheduler.score(group_of_size(size), caller=caller_of("a")) for size in (5, 6))
        await asyncio.gather(*calls)
    assert [(done.num_groups, done.reason) for done in noted.done] == [(2, "ENGINE_FAILED"), (1, "ok"), (1, "ok")]


async def test_slices_are_told_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    engine, noted = DividingEngine(), Noted()
    monkeypatch.setattr("tests.unit.server.scheduling.simulated.SECONDS_PER_TOKEN", 0.0)
    scheduler = Scheduler(engine, SchedulerConfig(max_batch_tokens=100), observers=[noted])
    scheduler.start()
    await scheduler.score(group_of_size(250), caller=caller_of("a"))
    await scheduler.stop()
    assert [(done.num_tokens, done.computed_by_tenant["a"]) for done in noted.done] == [
        (100, 100),
        (100, 100),
        (50, 50),
    ]


async def test_what_waits_is_told_by_tenant() -> None:
    engine = ScriptedEngine(is_open=False)
    async with running(engine) as scheduler:
        tasks = [await occupy(engine, scheduler)]
        for name, tenant, size in (("a", "t", 5), ("b", "t", 7), ("c", "u", 9)):
            tasks.append(await begin(scheduler.score(group_of_size(size), caller=caller_of(name, tenant=tenant))))
        # Each: a prompt of one id of 8 bytes, and 9 bytes for each other id and its mask.
        assert scheduler.waiting_by_tenant() == {
            "t": Waiting(groups=2, tokens=12, num_bytes=2 * 8 + 10 * 9),
            "u": Waiting(groups=1, tokens=9, num_bytes=8 + 8 * 9),
        }
        assert (scheduler.num_waiting, scheduler.num_waiting_tokens, scheduler.num_waiting_bytes) == (3, 21, 186)
        engine.gate.set()
        await asyncio.gather(*tasks)
        assert scheduler.waiting_by_tenant() == {}
