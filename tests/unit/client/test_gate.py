"""What is in flight at once is bounded, in calls and in bytes; the rest waits its turn."""

from __future__ import annotations

import asyncio
import random

import pytest
from preceptor_client.gate import Gate


async def hold(gate: Gate, num_bytes: int, *, entered: list[int], name: int, release: asyncio.Event) -> None:
    async with gate.slot(num_bytes):
        entered.append(name)
        await release.wait()


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def test_calls_enter_first_come_first_served_as_others_leave() -> None:
    gate = Gate(max_calls=2, max_bytes=1000)
    entered: list[int] = []
    releases = [asyncio.Event() for _ in range(5)]
    async with asyncio.TaskGroup() as tasks:
        for name, release in enumerate(releases):
            tasks.create_task(hold(gate, 1, entered=entered, name=name, release=release))
        await settle()
        assert entered == [0, 1]
        releases[1].set()
        await settle()
        assert entered == [0, 1, 2]
        for release in releases:
            release.set()
    assert entered == [0, 1, 2, 3, 4]
    assert (gate.num_calls, gate.num_bytes) == (0, 0)


async def test_bytes_are_bounded_and_a_small_call_does_not_overtake_a_large_one() -> None:
    gate = Gate(max_calls=10, max_bytes=100)
    entered: list[int] = []
    releases = [asyncio.Event() for _ in range(3)]
    async with asyncio.TaskGroup() as tasks:
        for name, num_bytes in enumerate((60, 70, 10)):
            tasks.create_task(hold(gate, num_bytes, entered=entered, name=name, release=releases[name]))
        await settle()
        assert (entered, gate.num_bytes) == ([0], 60)
        releases[0].set()
        await settle()
        assert (entered, gate.num_bytes) == ([0, 1, 2], 80)
        for release in releases:
            release.set()


async def test_a_call_larger_than_all_may_be_together_goes_alone() -> None:
    gate = Gate(max_calls=10, max_bytes=100)
    async with gate.slot(1000):
        waiting = asyncio.create_task(hold(gate, 1, entered=[], name=0, release=asyncio.Event()))
        await settle()
        assert gate.num_calls == 1
        waiting.cancel()


async def test_who_gives_up_in_the_queue_leaves_no_trace() -> None:
    gate = Gate(max_calls=1, max_bytes=100)
    entered: list[int] = []
    release = asyncio.Event()
    async with gate.slot(1):
        tasks = [asyncio.create_task(hold(gate, 1, entered=entered, name=name, release=release)) for name in range(3)]
        await settle()
        tasks[0].cancel()
    await settle()
    assert entered == [1]
    # Its turn was given and not yet taken.
    release.set()
    tasks[1].cancel()
    await asyncio.wait(tasks)
    assert entered == [1, 2]
    assert (gate.num_calls, gate.num_bytes) == (0, 0)


@pytest.mark.parametrize("seed", range(5))
async def test_cancellations_at_random_moments_neither_leak_turns_nor_pass_the_bound(seed: int) -> None:
    chance = random.Random(seed)
    gate = Gate(max_calls=4, max_bytes=50)
    most = 0

    async def call() -> None:
        nonlocal most
        async with gate.slot(chance.randrange(30)):
            most = max(most, gate.num_calls)
            assert gate.num_bytes <= 50
            await asyncio.sleep(chance.random() * 0.002)

    tasks = [asyncio.create_task(call()) for _ in range(300)]
    while not all(task.done() for task in tasks):
        chance.choice(tasks).cancel()
        await asyncio.sleep(0.0001)
    assert most == 4
    assert (gate.num_calls, gate.num_bytes) == (0, 0)
