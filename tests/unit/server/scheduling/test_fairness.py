"""Who gets how much of a busy engine, simulated: a batch of 4,096 tokens takes a second of virtual time."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

from tests.unit.server.callers import caller_of
from tests.unit.server.groups import group_of_size
from tests.unit.server.scheduling.simulated import (
    BATCH_SECONDS,
    DividingEngine,
    Served,
    SimulatedEngine,
    closed_loop,
    open_loop,
    simulated,
)
from tests.unit.server.scheduling.virtual_time import run

SECONDS = 400.0


async def closed_loops(*loops: tuple[str, str, float, int, int]) -> Served:
    """Each: tenant, caller, weight of the tenant, calls at once, tokens of each."""
    served = Served()
    async with simulated(SimulatedEngine()) as scheduler:
        await asyncio.gather(
            *(
                closed_loop(
                    scheduler,
                    caller_of(name, tenant=tenant, tenant_weight=weight),
                    served,
                    at_once=at_once,
                    size=size,
                    seconds=SECONDS,
                )
                for tenant, name, weight, at_once, size in loops
            )
        )
    return served


def test_one_large_group_at_a_time_and_sixteen_small_ones_get_the_same() -> None:
    served = run(closed_loops(("large", "l", 1, 1, 4000), ("small", "s", 1, 16, 300)))
    assert served.jain() >= 0.98
    # Nothing is left lying: the engine could compute 400 batches of 4,096 tokens, and rounds trips take their time.
    assert sum(served.tokens.values()) >= 0.95 * SECONDS * 4096


def test_so_they_do_as_two_callers_of_one_tenant() -> None:
    served = run(closed_loops(("one", "large", 1, 1, 4000), ("one", "small", 1, 16, 300)))
    large, small = served.tokens_by_caller["large"], served.tokens_by_caller["small"]
    assert abs(large - small) <= 0.05 * large


def test_twenty_names_of_one_tenant_get_no_more_than_one_of_another() -> None:
    names = [("many", f"name {i}", 1.0, 8, 300) for i in range(20)]
    served = run(closed_loops(("one", "o", 1, 16, 300), ("other", "p", 1, 16, 500), *names))
    assert served.jain() >= 0.98


def test_weights_of_one_two_and_four_are_kept_within_a_twentieth() -> None:
    served = run(closed_loops(("one", "a", 1, 16, 600), ("two", "b", 2, 16, 600), ("four", "c", 4, 16, 600)))
    total = sum(served.tokens.values())
    shares = {name: tokens / total for name, tokens in served.tokens.items()}
    assert shares == pytest.approx({"one": 1 / 7, "two": 2 / 7, "four": 4 / 7}, rel=0.05)


def test_weights_of_callers_divide_their_tenants_share() -> None:
    served = Served()

    async def simulate() -> None:
        async with simulated(SimulatedEngine()) as scheduler:
            callers = [
                caller_of("light", tenant="t", weight=0.25),
                caller_of("heavy", tenant="t", weight=0.75),
                caller_of("other"),
            ]
            await asyncio.gather(
                *(closed_loop(scheduler, one, served, at_once=16, size=500, seconds=SECONDS) for one in callers)
            )

    run(simulate())
    total = sum(served.tokens_by_caller.values())
    shares = {name: tokens / total for name, tokens in served.tokens_by_caller.items()}
    assert shares == pytest.approx({"light": 1 / 8, "heavy": 3 / 8, "other": 1 / 2}, rel=0.05)


def test_open_loops_that_ask_for_three_times_what_there_is_get_the_same() -> None:
    served = Served()

    async def simulate() -> None:
        async with simulated(SimulatedEngine()) as scheduler:
            await asyncio.gather(
                *(
                    open_loop(
                        scheduler,
                        caller_of(name),
                        served,
                        per_second=tokens_per_second / size,
                        size=size,
                        seconds=SECONDS,
                        seed=seed,
                    )
                    for seed, (name, tokens_per_second, size) in enumerate(
                        [("a", 2000, 200), ("b", 4000, 400), ("c", 6000, 3000)]
                    )
                )
            )

    run(simulate())
    assert served.jain() >= 0.98
    assert sum(served.tokens.values()) >= 0.97 * SECONDS * 4096


def test_a_short_group_beside_a_flood_of_large_ones_is_answered_within_two_batches() -> None:
    flood, short = Served(), Served()
    engine = DividingEngine()

    async def simulate() -> None:
        async with simulated(engine) as scheduler:
            await asyncio.gather(
                closed_loop(scheduler, caller_of("flood"), flood, at_once=16, size=8000, seconds=SECONDS),
                open_loop(scheduler, caller_of("short"), short, per_second=1, size=300, seconds=SECONDS, seed=1),
            )

    run(simulate())
    assert len(short.seconds) >= 0.8 * SECONDS
    assert np.percentile(short.seconds, 95) <= 2 * BATCH_SECONDS
    assert max(short.seconds) <= 3 * BATCH_SECONDS
    assert flood.tokens["flood"] >= 0.85 * SECONDS * 4096, "and the flood has what is left"
    assert (engine.num_open, engine.most_open <= 4) == (0, True)


def test_the_time_of_a_forward_that_nobody_waits_for_any_more_pays_no_debts() -> None:
    answered: list[str] = []

    async def simulate() -> None:
        async with simulated(SimulatedEngine()) as scheduler:

            async def ask(name: str, size: int) -> None:
                await scheduler.score(group_of_size(size), caller=caller_of(name))
                answered.append(name)

            await ask("somebody", 4000)  # from now on it is known how fast the engine is
            await asyncio.sleep(60)
            leaves = asyncio.create_task(ask("a", 40_000))
            await asyncio.sleep(0.1)
            leaves.cancel()
            await asyncio.sleep(9)
            answered.clear()
            await asyncio.gather(*(ask(name, 4000) for name in "abbbb"))

    run(simulate())
    assert answered == [*"bbbba"]
