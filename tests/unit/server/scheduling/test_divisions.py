"""Large groups are computed in slices, between which others have their turn."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from preceptor_server.context_costs import ContextCosts
from preceptor_server.errors import DeadlinePassedError, EngineOutOfMemoryError, QueueFullError
from preceptor_server.scheduling.config import SchedulerConfig
from preceptor_server.scheduling.divisions import ByResponses
from preceptor_server.types import EngineInfo, GroupColumns, ScoredGroup, ScoreGroup

from tests.unit.server.callers import caller_of
from tests.unit.server.groups import group_of, group_of_size
from tests.unit.server.scheduling.simulated import DividingEngine, SimulatedEngine, simulated
from tests.unit.server.scheduling.virtual_time import run


def test_a_large_group_is_answered_like_any_other_after_its_last_slice() -> None:
    engine = DividingEngine()

    async def simulate() -> ScoredGroup:
        async with simulated(engine) as scheduler:
            return await scheduler.score(group_of([1], [5] * 4999, [6] * 4000), caller=caller_of("a"))

    scored = run(simulate())
    assert engine.batches == [[4096], [4096], [808]]
    assert [set(columns.sampled_logprobs_N.tolist()) for columns in scored.columns] == [{5}, {6}]
    assert scored.forward_ms == pytest.approx(9000 / 4096 * 1000)
    assert engine.num_open == 0


def test_others_have_their_fair_turn_between_slices() -> None:
    engine = DividingEngine()

    async def simulate() -> None:
        async with simulated(engine) as scheduler:
            large = asyncio.create_task(scheduler.score(group_of_size(12_000), caller=caller_of("a")))
            await asyncio.sleep(0.5)
            others = [scheduler.score(group_of_size(2000), caller=caller_of("b")) for _ in range(6)]
            await asyncio.gather(large, *others)

    run(simulate())
    # By tags: b at 0, 2000, 4000, a at 4096, b at 6000 (beside the one at 4000), 8000, a at 8192.
    assert engine.batches == [[4096], [2000, 2000], [2000, 2000], [4096], [2000, 2000], [3808]]


def test_a_large_support_makes_smaller_slices() -> None:
    engine = DividingEngine()

    async def simulate() -> None:
        async with simulated(engine) as scheduler:
            await scheduler.score(group_of([1], [2] * 7999, top_k=1024), caller=caller_of("a"))

    run(simulate())
    # 7,999 positions of 992 support entries more than a token's cost includes.
    cost_of_token = (8000 + 7999 * 992 * 0.0003) / 8000
    assert engine.batches[0] == [int(4096 / cost_of_token)]
    assert sum(sum(batch) for batch in engine.batches) == 8000


def test_a_group_whose_caller_leaves_is_closed_at_once_even_between_two_slices() -> None:
    engine = DividingEngine()

    async def simulate() -> None:
        async with simulated(engine) as scheduler:
            call = asyncio.create_task(scheduler.score(group_of_size(40_000), caller=caller_of("a")))
            await asyncio.sleep(2.5)
            other = asyncio.create_task(scheduler.score(group_of_size(4000), caller=caller_of("b")))
            await asyncio.sleep(1.0)
            assert engine.batches == [[4096]] * 3 + [[4000]], "the large one waits for its turn"
            assert engine.num_open == 1
            call.cancel()
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            assert engine.num_open == 0
            await other

    run(simulate())
    assert engine.batches == [[4096]] * 3 + [[4000]]


def test_a_group_whose_deadline_passes_costs_no_further_slice() -> None:
    engine = DividingEngine()

    async def simulate() -> None:
        async with simulated(engine) as scheduler:
            with pytest.raises(DeadlinePassedError, match=r"after 3\.0 s while it was scored"):
                await scheduler.score(group_of_size(40_000), caller=caller_of("a"), timeout_seconds=2.5)
            await scheduler.score(group_of_size(10), caller=caller_of("a"))

    run(simulate())
    assert engine.batches in ([[4096]] * 3 + [[10]], [[4096]] * 4 + [[10]])
    assert engine.num_open == 0


def test_at_most_four_are_open_two_of_one_tenant_and_nobody_is_held_up_by_those_that_wait() -> None:
    engine = DividingEngine()

    async def simulate() -> None:
        async with simulated(engine, SchedulerConfig(max_divided_groups=4)) as scheduler:
            large = [
                asyncio.create_task(
                    scheduler.score(group_of_size(9000), caller=caller_of(f"{tenant}{i}", tenant=tenant))
                )
                for tenant in ("x", "y", "z")
                for i in range(20)
            ]
            await asyncio.sleep(10.5)
            began = asyncio.get_running_loop().time()
            await scheduler.score(group_of_size(10), caller=caller_of("small"))
            assert asyncio.get_running_loop().time() - began <= 2.0
            large[3].cancel()  # while it waits for a place
            outcomes = await asyncio.gather(*large, return_exceptions=True)
            assert sum(isinstance(outcome, ScoredGroup) for outcome in outcomes) == 59

    run(simulate())
    assert (engine.most_open, engine.num_open) == (4, 0)


@pytest.mark.parametrize("num_places", [1, 4])
def test_more_tenants_than_places_have_their_turns_one_after_the_other(num_places: int) -> None:
    """Each has more large groups than it has places, all the time."""
    tenants = "uvwxyz"
    answered: list[str] = []

    async def simulate() -> None:
        async with simulated(DividingEngine(), SchedulerConfig(max_divided_groups=num_places)) as scheduler:

            async def ask(tenant: str) -> None:
                await scheduler.score(group_of_size(8000), caller=caller_of(tenant))
                answered.append(tenant)

            await asyncio.gather(*(ask(tenant) for tenant in tenants for _ in range(5)))

    run(simulate())
    assert set(answered[: len(tenants) + num_places]) == set(tenants)
    for count in range(6, 30, 6):
        shares = [answered[:count].count(tenant) for tenant in tenants]
        assert max(shares) - min(shares) <= 2


def test_groups_that_wait_for_a_place_are_bounded_like_those_that_wait_for_their_first_forward() -> None:
    """Each does not fit into memory at once, which only its first forward shows."""

    class NoMemory(DividingEngine):
        async def score(self, batch: Sequence[ScoreGroup]) -> list[GroupColumns]:
            await asyncio.sleep(0.01)
            raise EngineOutOfMemoryError("for anything but slices")

    async def simulate() -> None:
        config = SchedulerConfig(max_queue_groups=10, max_divided_groups=1)
        async with simulated(NoMemory(), config) as scheduler:
            calls = []
            for i in range(40):
                asking = scheduler.score(group_of_size(4000), caller=caller_of(f"c{i}"))
                calls.append(asyncio.create_task(asking))
                await asyncio.sleep(0.02)
                assert scheduler.num_waiting <= 10 + 1, "one may come back from its first forward"
                assert sum(not call.done() for call in calls) <= 12, "and one has a place, one is in flight"
            outcomes = await asyncio.gather(*calls, return_exceptions=True)
            assert {type(outcome) for outcome in outcomes} == {ScoredGroup, QueueFullError}
            assert (scheduler.num_waiting, scheduler.num_waiting_tokens, scheduler.waiting_by_tenant()) == (0, 0, {})

    run(simulate())


def test_new_weights_between_two_slices_have_the_group_computed_from_its_beginning() -> None:
    class Renewed(DividingEngine):
        revision = "1"

        def info(self) -> EngineInfo:
            info = super().info()
            return EngineInfo(**{name: getattr(info, name) for name in info.__slots__} | {"revision": self.revision})

    engine = Renewed()

    async def simulate() -> ScoredGroup:
        async with simulated(engine) as scheduler:
            call = asyncio.create_task(scheduler.score(group_of_size(8000), caller=caller_of("a")))
            await asyncio.sleep(0.5)
            async with scheduler.paused():
                engine.revision = "2"
            return await call

    assert run(simulate()).revision == "2"
    assert engine.batches == [[4096], [4096], [3904]]
    assert engine.num_open == 0


def test_an_engine_that_does_not_divide_has_responses_computed_apart() -> None:
    engine = SimulatedEngine()
    group = group_of([1] * 500, *([i] * 1000 for i in range(9)))

    async def simulate() -> ScoredGroup:
        async with simulated(engine) as scheduler:
            return await scheduler.score(group, caller=caller_of("a"))

    scored = run(simulate())
    assert engine.batches == [[3500], [3500], [3500]]
    assert [set(columns.sampled_logprobs_N.tolist()) for columns in scored.columns] == [{i} for i in range(9)]


@pytest.mark.parametrize(
    "group",
    [group_of([1] * 2000, *([i] * 1000 for i in range(9))), group_of([1], [2] * 8000)],
    ids=["a prompt that each part would compute anew", "one response"],
)
def test_what_cannot_be_computed_apart_is_computed_at_once(group: object) -> None:
    engine = SimulatedEngine()

    async def simulate() -> None:
        async with simulated(engine) as scheduler:
            await scheduler.score(group, caller=caller_of("a"))  # type: ignore[arg-type]  # pytest's parameters

    run(simulate())
    assert len(engine.batches) == 1


def test_a_group_whose_deadline_has_passed_when_it_turns_out_too_large_waits_for_no_place() -> None:
    class NoMemory(DividingEngine):
        async def score(self, batch: Sequence[ScoreGroup]) -> list[GroupColumns]:
            await super().score(batch)
            raise EngineOutOfMemoryError("for anything but slices")

    async def simulate() -> float:
        async with simulated(NoMemory(), SchedulerConfig(max_divided_groups=1)) as scheduler:
            large = asyncio.create_task(scheduler.score(group_of_size(80_000), caller=caller_of("large")))
            await asyncio.sleep(0)
            with pytest.raises(DeadlinePassedError):
                await scheduler.score(group_of_size(4000), caller=caller_of("a"), timeout_seconds=1.5)
            seconds = asyncio.get_running_loop().time()
            large.cancel()
            return seconds

    assert run(simulate()) < 2.1


async def test_parts_of_a_group_cover_every_response_once_in_order() -> None:
    rng = np.random.default_rng(5)
    for _ in range(50):
        lengths = rng.integers(1, 60, rng.integers(1, 20))
        group = group_of([1] * 10, *([i] * int(n) for i, n in enumerate(lengths)))
        engine = SimulatedEngine()
        engine.forward = no_time  # type: ignore[method-assign]
        division = ByResponses(engine, group, max_cost=80)
        columns, announced = None, []
        while division.next_tokens:
            announced.append(division.next_tokens)
            columns = await division.advance()
        assert columns is not None
        assert [len(one.sampled_logprobs_N) for one in columns] == lengths.tolist()
        assert sum(announced) == 10 * len(announced) + lengths.sum()
        assert all(tokens <= 80 for tokens in announced)


async def test_parts_hold_fewer_responses_where_their_context_costs_more() -> None:
    group = group_of([1] * 100, *([2] * 50 for _ in range(12)))
    engine = SimulatedEngine()
    costs = ContextCosts(horizon=100.0)
    engine.info = lambda: replace(SimulatedEngine().info(), context_costs=costs)  # type: ignore[method-assign]
    engine.forward = no_time  # type: ignore[method-assign]
    prompt = sum(1 + p / 100 for p in range(100))  # 149.5
    response = sum(1 + p / 100 for p in range(100, 150))  # 112.25
    division = ByResponses(engine, group, max_cost=500)
    announced, costs_announced = [], []
    while division.next_tokens:
        announced.append(division.next_tokens)
        costs_announced.append(division.next_cost)
        await division.advance()
    assert announced == [100 + 3 * 50] * 4, "by tokens eight would fit"
    assert costs_announced == pytest.approx([prompt + 3 * response] * 4)
    assert division.next_cost == 0


async def no_time(sizes: list[int]) -> None:
    del sizes
