"""Whose message is read or decoded: in number and in bytes, never above the bound, and in order."""

from __future__ import annotations

import asyncio
import random

from preceptor_server.edges.grpc.turns import Turn, Turns


async def settled(*tasks: asyncio.Task[Turn]) -> list[bool]:
    """Which of them have their turn."""
    for _ in range(3):
        await asyncio.sleep(0)
    return [task.done() for task in tasks]


def begun(turns: Turns, *sizes: int | None) -> list[asyncio.Task[Turn]]:
    return [asyncio.create_task(turns.begin(size)) for size in sizes]


async def test_messages_begin_in_order_while_their_bytes_fit() -> None:
    turns = Turns(max_bytes=100, max_messages=10)
    tasks = begun(turns, 60, 40, 1, 1)
    assert await settled(*tasks) == [True, True, False, False]
    assert turns.num_bytes == 100
    (await tasks[0]).end()
    assert await settled(*tasks) == [True, True, True, True]
    assert turns.num_bytes == 42


async def test_small_message_waits_behind_a_large_one_and_a_huge_one_goes_alone() -> None:
    turns = Turns(max_bytes=100, max_messages=10)
    tasks = begun(turns, 10, 500, 1)
    assert await settled(*tasks) == [True, False, False]
    (await tasks[0]).end()
    assert await settled(*tasks) == [True, True, False]
    (await tasks[1]).end()
    assert await settled(*tasks) == [True, True, True]


async def test_no_more_messages_than_the_bound_in_number() -> None:
    turns = Turns(max_bytes=100, max_messages=2)
    tasks = begun(turns, 1, 1, 1)
    assert await settled(*tasks) == [True, True, False]


async def test_first_message_of_unknown_size_is_alone_and_the_next_count_as_it_did() -> None:
    turns = Turns(max_bytes=100, max_messages=10)
    tasks = begun(turns, None, None, None, None, None)
    assert await settled(*tasks) == [True, False, False, False, False]
    (await tasks[0]).resize(30)
    # 30 of the first, and 30 each of the next: a fourth does not fit.
    assert await settled(*tasks) == [True, True, True, False, False]
    (await tasks[1]).resize(4)
    # It counted as 30, so that the next count as 15: 30 + 4 + 30 + 15 + 15.
    assert await settled(*tasks) == [True] * 5
    assert turns.num_bytes == 94


async def test_turn_that_is_given_up_while_waiting_or_as_it_comes_holds_nothing() -> None:
    turns = Turns(max_bytes=100, max_messages=10)
    first, waiting, coming, last = begun(turns, 100, 50, 60, 100)
    await settled(first)
    waiting.cancel()
    await settled(waiting)
    (await first).end()  # gives `coming` its turn, of which it has not heard
    coming.cancel()
    assert (await settled(first, waiting, coming, last), coming.cancelled()) == ([True] * 4, True)
    assert turns.num_bytes == 100
    (await last).end()
    assert turns.num_bytes == 0
    assert turns.is_idle


async def test_bytes_never_pass_the_bound_whatever_comes_and_goes() -> None:
    turns, rng, most = Turns(max_bytes=1000, max_messages=7), random.Random(5), 0

    async def one(size: int) -> None:
        nonlocal most
        turn = await turns.begin(size)
        most = max(most, turns.num_bytes)
        assert turns.num_bytes <= 1000
        for _ in range(rng.randrange(4)):
            await asyncio.sleep(0)
        turn.end()

    tasks = [asyncio.create_task(one(rng.randrange(1, 700))) for _ in range(300)]
    for _ in range(40):
        rng.choice(tasks).cancel()
        await asyncio.sleep(0)
    await asyncio.gather(*tasks, return_exceptions=True)
    assert most > 500
    assert (turns.num_bytes, turns.is_idle) == (0, True)
