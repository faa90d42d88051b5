"""A server that fails again and again is asked by one call at a time, until one of them is answered."""

from __future__ import annotations

import asyncio

import grpc
import pytest
from preceptor_client import RetryPolicy, TeacherClient, TeacherIds
from preceptor_client.breaker import FAILURES_TO_OPEN, CircuitBreaker, RestingError
from preceptor_client.errors import TeacherUnavailableError
from preceptor_client.status import Failure
from preceptor_client.transport import TransportError

from tests.unit.client.in_memory import InMemory

GONE = Failure(code=grpc.StatusCode.UNAVAILABLE, message="gone")
POLICY = RetryPolicy(initial_seconds=0.02, max_seconds=0.04)
# The jitter of a wait may be nothing: so long that a test sees it stand.
SLOW = RetryPolicy(initial_seconds=1000, max_seconds=1000)


async def fail(breaker: CircuitBreaker, times: int) -> None:
    for _ in range(times):
        async with breaker.passage(is_patient=True) as passage:
            passage.failed(GONE)


async def test_fewer_failures_in_a_row_do_not_open_it() -> None:
    breaker = CircuitBreaker(SLOW, failures_to_open=3)
    for _ in range(4):
        await fail(breaker, 2)
        async with breaker.passage(is_patient=True) as passage:
            passage.answered()
    assert not breaker.is_open
    await fail(breaker, 3)
    assert breaker.is_open


async def test_an_impatient_call_is_turned_away_and_told_why() -> None:
    breaker = CircuitBreaker(SLOW, failures_to_open=3)
    await fail(breaker, 3)
    with pytest.raises(RestingError) as caught:
        async with breaker.passage(is_patient=False):
            raise AssertionError("it passed")
    assert caught.value.failure is GONE


async def test_one_probe_at_a_time_passes_and_its_answer_lets_all_pass() -> None:
    breaker = CircuitBreaker(POLICY, failures_to_open=3)
    await fail(breaker, 3)
    inside: list[bool] = []
    answer = asyncio.Event()

    async def call() -> None:
        async with breaker.passage(is_patient=True) as passage:
            inside.append(passage.is_probe)
            await answer.wait()
            passage.answered()

    async with asyncio.TaskGroup() as tasks:
        for _ in range(50):
            tasks.create_task(call())
        await asyncio.sleep(0.2)
        assert inside == [True]
        answer.set()
    assert inside == [True, *[False] * 49]


async def test_a_probe_that_fails_or_is_given_up_makes_room_for_the_next() -> None:
    breaker = CircuitBreaker(POLICY, failures_to_open=1)
    await fail(breaker, 4)
    async with asyncio.timeout(5):
        probe = asyncio.create_task(_hang(breaker))
        await asyncio.sleep(0.1)
        probe.cancel()
        async with breaker.passage(is_patient=True) as passage:
            assert passage.is_probe


async def test_failures_of_calls_that_passed_before_do_not_lengthen_the_rest() -> None:
    breaker = CircuitBreaker(RetryPolicy(initial_seconds=0.01, max_seconds=1000), failures_to_open=2)
    passages = [breaker.passage(is_patient=True) for _ in range(40)]
    for each in [await one.__aenter__() for one in passages]:
        each.failed(GONE)
    for one in passages:
        await one.__aexit__(None, None, None)
    async with asyncio.timeout(5):
        async with breaker.passage(is_patient=True) as passage:
            assert passage.is_probe


async def _hang(breaker: CircuitBreaker) -> None:
    async with breaker.passage(is_patient=True):
        await asyncio.sleep(1000)


@pytest.fixture
def dead() -> InMemory:
    transport = InMemory()
    transport.failure = TransportError(grpc.StatusCode.UNAVAILABLE, "gone")
    return transport


async def test_a_thousand_pending_groups_do_not_hammer_a_dead_server_and_all_are_scored_once_it_is_back(
    dead: InMemory,
) -> None:
    policy = RetryPolicy(initial_seconds=0.05, max_seconds=0.05)
    async with TeacherClient("nobody:1", transport=dead, retry=policy, timeout_seconds=30) as client:
        calls = [asyncio.create_task(client.score(TeacherIds([1]), [[n % 50]], top_k=2)) for n in range(1000)]
        await asyncio.sleep(0.5)
        num_asked = dead.num_calls
        assert not any(call.done() for call in calls)
        dead.failure = None
        await asyncio.gather(*calls)
    # 64 pass before the first fails. Then one at a time: half a second holds some 20 waits of up to 0.05 s.
    assert 64 <= num_asked <= 64 + 100
    assert dead.num_calls - num_asked <= 1000 + 1


async def test_waiting_for_a_probe_keeps_the_deadline_and_says_what_failed(dead: InMemory) -> None:
    async with TeacherClient("nobody:1", transport=dead, retry=SLOW, timeout_seconds=0.2) as client:
        for _ in range(FAILURES_TO_OPEN):
            with pytest.raises(TeacherUnavailableError, match=r"1 attempt.*UNAVAILABLE: gone"):
                await client.info()
        with pytest.raises(TeacherUnavailableError, match=r"0 attempt.*UNAVAILABLE: gone") as caught:
            await client.info()
    assert caught.value.code == "UNAVAILABLE"
    assert dead.num_calls == FAILURES_TO_OPEN


async def test_a_full_queue_never_opens_it() -> None:
    full = InMemory()
    full.failure = TransportError(grpc.StatusCode.RESOURCE_EXHAUSTED, "full", reason="QUEUE_FULL")
    async with TeacherClient("nobody:1", transport=full, retry=POLICY, timeout_seconds=1) as client:
        call = asyncio.create_task(client.score(TeacherIds([1]), [[1]], top_k=2))
        while full.num_calls < 3 * FAILURES_TO_OPEN:
            await asyncio.sleep(0.01)
        full.failure = None
        await call


async def test_a_server_that_says_that_a_deadline_passed_is_there(dead: InMemory) -> None:
    async with TeacherClient("nobody:1", transport=dead, retry=POLICY, timeout_seconds=0.2) as client:
        with pytest.raises(TeacherUnavailableError, match="gone"):
            await client.info()
        assert dead.num_calls >= FAILURES_TO_OPEN
        late = "the queue ahead takes longer"
        dead.failure = TransportError(grpc.StatusCode.DEADLINE_EXCEEDED, late, reason="DEADLINE_PASSED")
        with pytest.raises(TeacherUnavailableError, match="longer"):
            await client.info()
        # Not one at a time any more.
        dead.failure, dead.seconds = None, {"nobody:1": 0.05}
        await asyncio.gather(*(client.score(TeacherIds([1]), [[n]], top_k=2, timeout_seconds=20) for n in range(8)))
    assert dead.most_at_once == 8
