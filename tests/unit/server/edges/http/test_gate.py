from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

import pytest
from preceptor_server.edges.http.gate import Gate
from preceptor_server.errors import DeadlinePassedError, QueueFullError

LONG = 60.0


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class World:
    """A gate, its clock, and whether others are at work."""

    def __init__(self, *, max_groups: int = 2, max_waiting: int = 8, share: float = 0.1) -> None:
        self.clock = Clock()
        self.is_contended = False
        self.gate = Gate(
            max_groups=max_groups,
            max_waiting=max_waiting,
            share=share,
            is_contended=lambda: self.is_contended,
            clock=self.clock,
        )
        self.order: list[str] = []

    async def ask(self, name: str, *, busy_seconds: float = 0.0, until: asyncio.Event | None = None) -> None:
        async with self.gate.turn(timeout_seconds=LONG) as turn:
            self.order.append(name)
            if until is not None:
                await until.wait()
            turn.busy_seconds = busy_seconds


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_a_few_at_once_and_the_rest_in_the_order_of_arrival() -> None:
    world, done = World(max_groups=2), asyncio.Event()
    tasks = [asyncio.create_task(world.ask(name, until=done)) for name in "abcd"]
    await settle()
    assert (world.order, world.gate.num_waiting) == (["a", "b"], 2)
    done.set()
    await asyncio.gather(*tasks)
    assert world.order == ["a", "b", "c", "d"]


async def test_one_at_a_time_while_others_are_at_work() -> None:
    world, done = World(max_groups=2), asyncio.Event()
    world.is_contended = True
    tasks = [asyncio.create_task(world.ask(name, until=done)) for name in "ab"]
    await settle()
    assert world.order == ["a"]
    done.set()
    await asyncio.gather(*tasks)


async def test_after_its_time_comes_a_pause_so_that_it_keeps_to_its_share() -> None:
    world = World(share=0.1)
    world.is_contended = True
    await world.ask("a", busy_seconds=2.0)
    waiting = asyncio.create_task(world.ask("b"))
    await settle()
    assert world.order == ["a"]
    world.clock.now += 17.9  # of the 2 / 0.1 - 2 seconds
    await asyncio.sleep(0.6)
    assert world.order == ["a"]
    world.clock.now += 0.2
    await asyncio.wait_for(waiting, 5)
    assert world.order == ["a", "b"]


async def test_there_is_no_pause_once_the_others_stopped() -> None:
    world = World(share=0.1)
    world.is_contended = True
    await world.ask("a", busy_seconds=2.0)
    waiting = asyncio.create_task(world.ask("b"))
    await settle()
    world.is_contended = False
    await asyncio.wait_for(waiting, 5)
    assert world.order == ["a", "b"]


async def test_time_that_nobody_else_wanted_is_not_paid_for_later() -> None:
    world = World(share=0.1)
    await world.ask("a", busy_seconds=50.0)
    world.is_contended = True
    await asyncio.wait_for(world.ask("b"), 1)
    assert world.order == ["a", "b"]


async def test_too_many_are_told_to_come_back() -> None:
    world, done = World(max_groups=1, max_waiting=1), asyncio.Event()
    tasks = [asyncio.create_task(world.ask(name, until=done)) for name in "ab"]
    await settle()
    with pytest.raises(QueueFullError, match="1 requests over HTTP wait already") as caught:
        await world.ask("c")
    assert caught.value.retry_after_seconds == 1.0
    done.set()
    await asyncio.gather(*tasks)


async def test_who_could_not_be_served_in_time_is_told_at_once_and_when() -> None:
    world = World(share=0.01)
    world.is_contended = True
    await world.ask("a", busy_seconds=1.0)
    with pytest.raises(QueueFullError) as caught:
        await world.ask("b")
    assert caught.value.retry_after_seconds == pytest.approx(99.0)


async def test_a_wait_ends_with_the_deadline_and_leaves_no_trace() -> None:
    world, done = World(max_groups=1), asyncio.Event()
    running = asyncio.create_task(world.ask("a", until=done))
    await settle()
    with pytest.raises(DeadlinePassedError, match=r"0\.05 s of waiting for a turn"):
        async with world.gate.turn(timeout_seconds=0.05):
            pass
    assert world.gate.num_waiting == 0
    done.set()
    await running
    await asyncio.wait_for(world.ask("b"), 1)


@pytest.mark.parametrize("is_admitted", [False, True])
async def test_who_gives_up_waiting_takes_no_place(is_admitted: bool) -> None:
    world, done = World(max_groups=1), asyncio.Event()
    running = asyncio.create_task(world.ask("a", until=done))
    waiting = asyncio.create_task(world.ask("b"))
    await settle()
    if is_admitted:  # in the same step of the loop
        done.set()
        await running
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    done.set()
    await running
    async with AsyncExitStack() as stack:
        await asyncio.wait_for(stack.enter_async_context(world.gate.turn(timeout_seconds=LONG)), 1)
        with pytest.raises(DeadlinePassedError):
            await stack.enter_async_context(world.gate.turn(timeout_seconds=0.01))
