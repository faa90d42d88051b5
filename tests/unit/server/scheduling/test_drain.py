"""A scheduler that is being stopped: nothing new, what there is within a limit, and never a bare cancellation."""

from __future__ import annotations

import asyncio

import pytest
from preceptor_server.errors import DrainingError, EngineUnavailableError
from preceptor_server.types import ScoredGroup

from tests.unit.server.callers import caller_of
from tests.unit.server.groups import group_of_size
from tests.unit.server.scheduling.simulated import DividingEngine, SimulatedEngine, simulated
from tests.unit.server.scheduling.virtual_time import run


def test_what_waits_is_worked_off_and_nothing_new_is_taken() -> None:
    engine = DividingEngine()

    async def simulate() -> None:
        async with simulated(engine) as scheduler:
            sizes = (4000, 3000, 2000, 9000)
            calls = [asyncio.create_task(scheduler.score(group_of_size(n), caller=caller_of("a"))) for n in sizes]
            await asyncio.sleep(0.1)
            draining = asyncio.create_task(scheduler.drain(60))
            await asyncio.sleep(0)
            with pytest.raises(DrainingError) as caught:
                await scheduler.score(group_of_size(5), caller=caller_of("b"))
            assert isinstance(caught.value, EngineUnavailableError), "clients ask another, or later"
            assert (caught.value.reason, caught.value.retry_after_seconds) == ("DRAINING", 1.0)
            await draining
            assert asyncio.get_running_loop().time() == pytest.approx(18_000 / 4096, abs=0.01)
            assert all(isinstance(call.result(), ScoredGroup) for call in calls)

    run(simulate())
    assert sum(sum(batch) for batch in engine.batches) == 18_000


def test_what_is_not_done_in_time_is_told_so_in_the_queue_in_flight_and_between_slices() -> None:
    engine = DividingEngine()

    async def simulate() -> None:
        async with simulated(engine) as scheduler:
            large = asyncio.create_task(scheduler.score(group_of_size(90_000), caller=caller_of("large")))
            calls = [asyncio.create_task(scheduler.score(group_of_size(4000), caller=caller_of("a"))) for _ in range(6)]
            await asyncio.sleep(0)
            await scheduler.drain(3.5)
            assert asyncio.get_running_loop().time() == pytest.approx(3.5)
            outcomes = await asyncio.gather(large, *calls, return_exceptions=True)
            kinds = [type(outcome) for outcome in outcomes]
            assert kinds[0] is DrainingError
            assert set(kinds[1:]) == {ScoredGroup, DrainingError}
            assert (scheduler.num_waiting, engine.num_open) == (0, 0)

    run(simulate())
    assert len(engine.batches) == 4


def test_an_idle_scheduler_drains_at_once() -> None:
    async def simulate() -> None:
        async with simulated(SimulatedEngine()) as scheduler:
            await scheduler.drain(60)
            assert asyncio.get_running_loop().time() == 0

    run(simulate())
