"""Teachers of one process take turns by weight."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace

import pytest
from preceptor_server.errors import DeadlinePassedError, UnknownTeacherError
from preceptor_server.scheduling.config import SchedulerConfig
from preceptor_server.scheduling.device_turns import DeviceTurns
from preceptor_server.scheduling.scheduler import Scheduler
from preceptor_server.types import EngineInfo, GroupColumns, ScoredGroup, ScoreGroup

from tests.unit.server.callers import caller_of
from tests.unit.server.groups import group_of
from tests.unit.server.scheduling.simulated import DividingEngine, SimulatedEngine
from tests.unit.server.scheduling.virtual_time import run


async def served(
    turns: DeviceTurns, *, num_turns: int, weights: dict[str, float], costs: dict[str, int]
) -> dict[str, int]:
    """Tokens that each teacher was served while all of them always want more, in so many turns."""
    tokens = dict.fromkeys(weights, 0)
    left = num_turns

    async def ask(name: str) -> None:
        nonlocal left
        while left > 0:
            async with turns.turn(name, weight=weights[name], cost=costs[name]):
                left -= 1
                tokens[name] += costs[name]
                await asyncio.sleep(0)

    await asyncio.gather(*map(ask, weights))
    return tokens


@pytest.mark.parametrize("costs", [{"a": 100, "b": 100, "c": 100}, {"a": 4000, "b": 300, "c": 50}])
async def test_tokens_are_shared_by_weight_whatever_a_forward_costs(costs: dict[str, int]) -> None:
    weights = {"a": 1.0, "b": 2.0, "c": 4.0}
    tokens = await served(DeviceTurns(), num_turns=4000, weights=weights, costs=costs)
    shares = {name: tokens[name] / weights[name] for name in weights}
    # Nobody is ahead of anybody by more than a forward of each.
    largest = sorted(costs[name] / weights[name] for name in weights)[-2:]
    assert max(shares.values()) - min(shares.values()) <= sum(largest) * 1.5
    assert min(tokens.values()) > 0


async def test_there_is_one_forward_at_a_time_and_who_gives_up_passes_the_turn_on() -> None:
    turns, order = DeviceTurns(), []
    go = asyncio.Event()

    async def hold(name: str) -> None:
        async with turns.turn(name, weight=1, cost=10):
            order.append(name)
            await go.wait()

    first = asyncio.create_task(hold("first"))
    await asyncio.sleep(0)
    second, third = asyncio.create_task(hold("second")), asyncio.create_task(hold("third"))
    await asyncio.sleep(0)
    assert order == ["first"]
    second.cancel()
    go.set()
    await asyncio.wait_for(asyncio.gather(first, third), 5)
    assert order == ["first", "third"]
    await asyncio.wait_for(hold("again"), 5)


async def test_a_turn_that_comes_as_it_is_given_up_goes_to_the_next() -> None:
    turns, done = DeviceTurns(), []

    async def hold(name: str, go: asyncio.Event) -> None:
        async with turns.turn(name, weight=1, cost=1):
            await go.wait()
            done.append(name)

    open_door = asyncio.Event()
    first = asyncio.create_task(hold("first", open_door))
    await asyncio.sleep(0)
    second = asyncio.create_task(hold("second", open_door))
    third = asyncio.create_task(hold("third", open_door))
    await asyncio.sleep(0)
    open_door.set()
    await first
    second.cancel()  # it was given its turn in this very step
    await asyncio.wait_for(third, 5)
    assert "third" in done


async def test_idleness_earns_nothing() -> None:
    turns = DeviceTurns()
    await served(turns, num_turns=1000, weights={"a": 1.0}, costs={"a": 100})
    tokens = await served(turns, num_turns=1000, weights={"a": 1.0, "b": 1.0}, costs={"a": 100, "b": 100})
    assert abs(tokens["a"] - tokens["b"]) <= 200


async def test_who_gives_up_a_turn_has_not_had_it() -> None:
    turns, order = DeviceTurns(), []

    async def ask(name: str) -> None:
        async with turns.turn(name, weight=1, cost=1000):
            order.append(name)

    async with turns.turn("holder", weight=1, cost=10):
        for _ in range(3):
            leaves = asyncio.create_task(ask("a"))
            await asyncio.sleep(0)
            leaves.cancel()
            await asyncio.wait([leaves])
        await asyncio.sleep(0)
        both = [asyncio.create_task(ask(name)) for name in ("a", "b")]
        await asyncio.sleep(0)
    await asyncio.gather(*both)
    assert order == ["a", "b"]


async def leave_while_another_has_the_turn(engine: SimulatedEngine, group: ScoreGroup) -> ScoredGroup:
    """Of two callers one leaves, and the deadline of a third passes, while their forwards wait for their turn. Then the
    group of the first is sent again."""
    turns, loop = DeviceTurns(), asyncio.get_running_loop()
    scheduler = Scheduler(engine, SchedulerConfig(), teacher="ours", turns=turns)
    scheduler.start()
    async with turns.turn("other", weight=1, cost=1):
        leaves = asyncio.create_task(scheduler.score(group, caller=caller_of("a")))
        late = asyncio.create_task(scheduler.score(group_of([1], [8] * 10), caller=caller_of("b"), timeout_seconds=5))
        stays = asyncio.create_task(scheduler.score(group_of([1], [9] * 10), caller=caller_of("c")))
        await asyncio.sleep(1)
        leaves.cancel()
        await asyncio.sleep(9)
    with pytest.raises(DeadlinePassedError):
        await late
    await stays
    assert loop.time() < 11
    assert sum(map(sum, engine.batches)) == 11, "what nobody waits for costs no forward"
    again = await scheduler.score(group, caller=caller_of("a"))
    await scheduler.stop()
    return again


@pytest.mark.parametrize("size", [100, 9000], ids=["whole", "in slices"])
def test_who_leaves_before_the_turn_costs_no_forward_and_is_not_blamed(size: int) -> None:
    engine = DividingEngine()
    scored = run(leave_while_another_has_the_turn(engine, group_of([1], [2] * (size - 1))))
    assert isinstance(scored, ScoredGroup)
    assert engine.num_open == 0


class AdaptingEngine(SimulatedEngine):
    """Raises, as vLLM does, for an adapter that it has not; `adapters` have revisions."""

    def __init__(self) -> None:
        super().__init__()
        self.adapters = {"maths": "maths 1", "prose": "prose 1"}

    def info(self) -> EngineInfo:
        return replace(super().info(), adapters=dict(self.adapters))

    async def score(self, batch: Sequence[ScoreGroup]) -> list[GroupColumns]:
        for group in batch:
            assert not group.adapter or self.adapters[group.adapter]
        return await super().score(batch)


@pytest.mark.parametrize("adapter", ["maths", "prose"])
def test_an_adapter_that_changes_before_the_turn_is_told_as_it_is_then(adapter: str) -> None:
    async def simulate() -> ScoredGroup:
        engine, turns = AdaptingEngine(), DeviceTurns()
        scheduler = Scheduler(engine, SchedulerConfig(), teacher="ours", turns=turns)
        scheduler.start()
        async with turns.turn("other", weight=1, cost=1):
            group = group_of([1], [8] * 10, adapter=adapter)
            asking = asyncio.create_task(scheduler.score(group, caller=caller_of("a")))
            await asyncio.sleep(1)
            assert scheduler.num_groups_in_flight == 1
            del engine.adapters["maths"]
            engine.adapters["prose"] = "prose 2"
        try:
            return await asking
        finally:
            await scheduler.stop()

    if adapter == "prose":
        assert run(simulate()).revision == "prose 2"
    else:
        with pytest.raises(UnknownTeacherError, match="'maths' was taken away while the group waited"):
            run(simulate())
