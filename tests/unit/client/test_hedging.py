"""A score that one replica does not answer in time is asked of the next too, for a bounded share of the calls."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.message import Message
from preceptor_client import RetryPolicy, ScoreCache, TeacherClient, TeacherIds, TransportError
from preceptor_client.errors import InvalidRequestError, TeacherUnavailableError
from preceptor_client.hedging import MAX_SAVED_HEDGES, HedgeBudget, race

from tests.unit.client.in_memory import InMemory
from tests.unit.client.test_replicas import preferring

QUICK = RetryPolicy(initial_seconds=0.01, max_seconds=0.05)


def scores_asked(transport: InMemory, address: str) -> int:
    return transport.asked.count(("Score", address))


async def warm_up(client: TeacherClient, *, num_calls: int) -> None:
    """Answered in time, these save up for a hedge."""
    for _ in range(num_calls):
        await client.score(preferring("b:1", ["a:1"]), [[1]], top_k=2)


async def test_the_next_replica_answers_for_one_that_hangs_and_the_slow_call_is_cancelled() -> None:
    transport = InMemory()
    transport.seconds["a:1"] = 1000
    async with TeacherClient("a:1,b:1", transport=transport, retry=QUICK, hedge_seconds=0.05) as client:
        await warm_up(client, num_calls=10)
        async with asyncio.timeout(10):
            scores = await client.score(preferring("a:1", ["b:1"]), [[7]], top_k=2)
    assert scores.responses
    assert (scores_asked(transport, "a:1"), scores_asked(transport, "b:1")) == (1, 11)
    assert transport.num_cancelled == 1


class Together(InMemory):
    """Answers the scores of both replicas at the same moment."""

    def __init__(self) -> None:
        super().__init__()
        self.barrier: asyncio.Event | None = None

    async def call(self, method: str, request: Message, **options: Any) -> Message:  # Any: as the protocol names them
        if method == "Score" and self.barrier is not None:
            self.asked.append((method, options["address"]))
            await self.barrier.wait()
        return await super().call(method, request, **options)


async def test_what_is_stored_is_the_answer_that_was_taken_though_the_other_came_at_the_same_moment(
    tmp_path: Path,
) -> None:
    transport = Together()
    group = preferring("a:1", ["b:1"])
    with ScoreCache(tmp_path / "scores") as cache:
        async with TeacherClient("a:1,b:1", transport=transport, hedge_seconds=0.01, cache=cache) as client:
            for number in range(10):
                await client.score(preferring("b:1", ["a:1"]), [[number]], top_k=2)
            transport.barrier = asyncio.Event()
            asking = asyncio.create_task(client.score(group, [[7]], top_k=2))
            before = transport.asked.count(("Score", "b:1"))
            async with asyncio.timeout(10):
                while transport.asked.count(("Score", "b:1")) == before:
                    await asyncio.sleep(0.01)
            transport.teacher("b:1").revision = "newer"
            transport.barrier.set()
            taken = await asking
            assert taken.revision == transport.teacher("a:1").revision
            num_asked = transport.num_calls
            stored = await client.score(group, [[7]], top_k=2)
    assert (stored.revision, transport.num_calls) == (taken.revision, num_asked)


async def test_a_first_that_answers_in_time_is_asked_alone() -> None:
    transport = InMemory()
    async with TeacherClient("a:1,b:1", transport=transport, retry=QUICK, hedge_seconds=5) as client:
        await warm_up(client, num_calls=30)
    assert (scores_asked(transport, "a:1"), scores_asked(transport, "b:1")) == (0, 30)


async def test_no_more_than_a_tenth_of_the_calls_are_asked_twice() -> None:
    transport = InMemory()
    transport.seconds = {"a:1": 0.02, "b:1": 0.02}
    async with TeacherClient("a:1,b:1", transport=transport, retry=QUICK, hedge_seconds=0.001) as client:
        for start in range(0, 200, 20):
            await asyncio.gather(*(client.score(TeacherIds([start + n]), [[1]], top_k=2) for n in range(20)))
    assert scores_asked(transport, "a:1") + scores_asked(transport, "b:1") == 220


async def test_without_hedging_or_with_one_replica_nothing_is_asked_twice() -> None:
    for addresses, hedge_seconds in (("a:1,b:1", None), ("a:1", 0.001)):
        transport = InMemory()
        transport.seconds = {"a:1": 0.01, "b:1": 0.01}
        async with TeacherClient(addresses, transport=transport, hedge_seconds=hedge_seconds) as client:
            await asyncio.gather(*(client.score(TeacherIds([n]), [[1]], top_k=2) for n in range(40)))
        assert scores_asked(transport, "a:1") + scores_asked(transport, "b:1") == 40


async def test_new_weights_are_never_hedged() -> None:
    transport = InMemory()
    async with TeacherClient("a:1,b:1", transport=transport, retry=QUICK, hedge_seconds=0.001) as client:
        await warm_up(client, num_calls=20)
        await client.update_weights("new")
    assert sorted(one for one in transport.asked if one[0] == "UpdateWeights") == [
        ("UpdateWeights", "a:1"),
        ("UpdateWeights", "b:1"),
    ]


async def test_a_budget_saves_up_to_its_bound_and_no_further() -> None:
    budget = HedgeBudget(1.0)
    assert not budget.spend()
    for _ in range(10):
        budget.earn()
    assert [budget.spend(), budget.spend()] == [True, False]
    for _ in range(10_000):
        budget.earn()
    assert [budget.spend() for _ in range(20)].count(True) == MAX_SAVED_HEDGES


async def answer(seconds: float, result: str | Exception) -> str:
    await asyncio.sleep(seconds)
    if isinstance(result, Exception):
        raise result
    return result


GONE = TeacherUnavailableError("gone")
ALSO_GONE = TeacherUnavailableError("also gone")
WRONG = InvalidRequestError("wrong")


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ((0.0, "first"), (0.0, "second"), "first"),
        ((0.1, "first"), (9.0, "second"), "first"),
        ((9.0, "first"), (0.0, "second"), "second"),
        ((0.1, GONE), (0.2, "second"), "second"),
        ((0.2, "first"), (0.0, GONE), "first"),
        ((0.1, GONE), (0.2, ALSO_GONE), ALSO_GONE),
        ((0.2, GONE), (0.0, ALSO_GONE), ALSO_GONE),
        ((0.0, GONE), (0.0, "second"), GONE),
        ((9.0, "first"), (0.0, WRONG), WRONG),
    ],
)
async def test_the_first_answer_wins(
    first: tuple[float, str | Exception], second: tuple[float, str | Exception], expected: str | Exception
) -> None:
    async def run() -> str:
        return await race(lambda: answer(*first), lambda: answer(*second), seconds=0.05, may_ask_second=lambda: True)

    async with asyncio.timeout(5):
        if isinstance(expected, str):
            assert await run() == expected
        else:
            with pytest.raises(type(expected)) as caught:
                await run()
            assert caught.value is expected


async def test_a_call_that_is_given_up_cancels_both() -> None:
    transport = InMemory()
    transport.seconds = {"a:1": 1000}
    async with TeacherClient("a:1,b:1", transport=transport, retry=QUICK, hedge_seconds=0.01) as client:
        await warm_up(client, num_calls=10)
        transport.seconds["b:1"] = 1000
        call = asyncio.create_task(client.score(preferring("a:1", ["b:1"]), [[1]], top_k=2))
        async with asyncio.timeout(10):
            while transport.num_at_once < 2:
                await asyncio.sleep(0.01)
        call.cancel()
        await asyncio.wait([call])
    assert (transport.num_cancelled, transport.num_at_once) == (2, 0)


async def test_where_both_fail_the_call_waits_and_goes_round_again() -> None:
    transport = InMemory()
    async with TeacherClient("a:1,b:1", transport=transport, retry=QUICK, hedge_seconds=0.01) as client:
        await warm_up(client, num_calls=10)
        transport.failure = TransportError(grpc.StatusCode.UNAVAILABLE, "gone")
        transport.seconds = {"a:1": 0.05, "b:1": 0.05}
        call = asyncio.create_task(client.score(preferring("a:1", ["b:1"]), [[1]], top_k=2))
        await asyncio.sleep(0.15)
        transport.failure = None
        assert (await call).responses
