"""The scheduler stands still for a while: nothing in flight, nothing lost."""

from __future__ import annotations

import asyncio

import pytest
from preceptor_server.errors import DeadlinePassedError, DrainingError
from preceptor_server.scheduling.scheduler import Scheduler

from tests.unit.server.callers import caller_of
from tests.unit.server.groups import group_of_size
from tests.unit.server.scheduling.running import begin, let_things_happen, running, sizes
from tests.unit.server.scripted_engine import ScriptedEngine

ENGINES = pytest.mark.parametrize(
    "max_tokens_in_flight", [None, 100], ids=["batches of the scheduler", "an engine that batches by itself"]
)


async def pause(scheduler: Scheduler, *, begun: asyncio.Event, until: asyncio.Event) -> None:
    async with scheduler.paused():
        begun.set()
        await until.wait()


@ENGINES
async def test_what_is_in_flight_is_finished_first_and_what_arrives_waits(max_tokens_in_flight: int | None) -> None:
    engine = ScriptedEngine(is_open=False, max_tokens_in_flight=max_tokens_in_flight)
    async with running(engine) as scheduler:
        in_flight = await begin(scheduler.score(group_of_size(5), caller=caller_of("a")))
        await engine.has_begun(1)
        begun, until = asyncio.Event(), asyncio.Event()
        pausing = asyncio.create_task(pause(scheduler, begun=begun, until=until))
        waits = await begin(scheduler.score(group_of_size(6), caller=caller_of("a")))
        await let_things_happen()
        assert not begun.is_set()
        engine.gate.set()
        await in_flight
        await asyncio.wait_for(begun.wait(), 5)
        await let_things_happen()
        assert (sizes(engine.batches), scheduler.num_waiting, engine.num_in_flight) == ([[5]], 1, 0)
        engine.revision = "2"
        until.set()
        assert (await asyncio.wait_for(waits, 5)).revision == "2"
        await pausing


@ENGINES
async def test_deadlines_count_while_it_stands_still(max_tokens_in_flight: int | None) -> None:
    engine = ScriptedEngine(max_tokens_in_flight=max_tokens_in_flight)
    async with running(engine) as scheduler:
        async with scheduler.paused():
            with pytest.raises(DeadlinePassedError, match="in the queue"):
                await scheduler.score(group_of_size(5), caller=caller_of("a"), timeout_seconds=0.02)
        await asyncio.wait_for(scheduler.score(group_of_size(6), caller=caller_of("a")), 5)
    assert sizes(engine.batches) == [[6]]


async def test_group_that_waits_for_company_when_a_pause_begins_goes_after_it() -> None:
    engine = ScriptedEngine()
    async with running(engine, batch_window_ms=10) as scheduler:
        call = await begin(scheduler.score(group_of_size(5), caller=caller_of("a")))
        await let_things_happen()
        async with scheduler.paused():
            await asyncio.sleep(0.05)
            assert sizes(engine.batches) == []
        await asyncio.wait_for(call, 5)


async def test_second_pause_waits_for_the_first() -> None:
    engine = ScriptedEngine()
    async with running(engine) as scheduler:
        begun = [asyncio.Event(), asyncio.Event()]
        until = [asyncio.Event(), asyncio.Event()]
        pauses = [asyncio.create_task(pause(scheduler, begun=begun[i], until=until[i])) for i in range(2)]
        await asyncio.wait_for(begun[0].wait(), 5)
        await let_things_happen()
        assert not begun[1].is_set()
        until[0].set()
        await asyncio.wait_for(begun[1].wait(), 5)
        until[1].set()
        await asyncio.gather(*pauses)
        await asyncio.wait_for(scheduler.score(group_of_size(5), caller=caller_of("a")), 5)


async def test_body_that_raises_and_pause_that_is_cancelled_let_it_go_on() -> None:
    engine = ScriptedEngine(is_open=False)
    async with running(engine) as scheduler:
        with pytest.raises(RuntimeError, match="no such weights"):
            async with scheduler.paused():
                raise RuntimeError("no such weights")
        in_flight = await begin(scheduler.score(group_of_size(5), caller=caller_of("a")))
        await engine.has_begun(1)
        waiting = asyncio.create_task(pause(scheduler, begun=asyncio.Event(), until=asyncio.Event()))
        await let_things_happen()
        waiting.cancel()
        await asyncio.wait([waiting], timeout=5)
        engine.gate.set()
        await asyncio.wait_for(asyncio.gather(in_flight, scheduler.score(group_of_size(6), caller=caller_of("a"))), 5)


async def test_stop_waits_for_the_pause_that_has_begun_and_none_begins_after_it() -> None:
    async with running(ScriptedEngine()) as scheduler:
        begun, until = asyncio.Event(), asyncio.Event()
        first = asyncio.create_task(pause(scheduler, begun=begun, until=until))
        await asyncio.wait_for(begun.wait(), 5)
        second = asyncio.create_task(pause(scheduler, begun=asyncio.Event(), until=until))
        call = await begin(scheduler.score(group_of_size(5), caller=caller_of("a")))
        stopping = asyncio.create_task(scheduler.stop())
        with pytest.raises(DrainingError):
            await asyncio.wait_for(call, 5)
        await let_things_happen()
        assert not stopping.done(), "new weights are being loaded"
        until.set()
        await asyncio.wait_for(asyncio.gather(first, stopping), 5)
        with pytest.raises(DrainingError):
            await asyncio.wait_for(second, 5)
