"""When the client asks again, how long it waits, and what it says when it gives up."""

from __future__ import annotations

import asyncio
import socket
import time
from dataclasses import replace

import grpc
import pytest
from preceptor_client import PreceptorError, RetryPolicy, TeacherClient, TeacherIds
from preceptor_client.errors import (
    AccessDeniedError,
    InvalidRequestError,
    MessageTooLargeError,
    NotImplementedByServerError,
    TeacherUnavailableError,
)
from preceptor_client.retry import RetryEvent

from tests.unit.client.scripted_teacher import Abort, Hang, Lie, ScriptedTeacher, serving

QUICK = RetryPolicy(initial_seconds=0.001, max_seconds=0.01)
OVERLOAD = Abort(code=grpc.StatusCode.RESOURCE_EXHAUSTED, message="queue is full", reason="QUEUE_FULL")
GONE = Abort(code=grpc.StatusCode.UNAVAILABLE, message="draining")
ENGINE_DIED = Abort(code=grpc.StatusCode.UNAVAILABLE, message="the engine died", reason="ENGINE_DIED")

EXPECTED_ERRORS: dict[grpc.StatusCode, type[PreceptorError]] = {
    grpc.StatusCode.INVALID_ARGUMENT: InvalidRequestError,
    grpc.StatusCode.NOT_FOUND: InvalidRequestError,
    grpc.StatusCode.OUT_OF_RANGE: InvalidRequestError,
    grpc.StatusCode.FAILED_PRECONDITION: InvalidRequestError,
    grpc.StatusCode.UNIMPLEMENTED: NotImplementedByServerError,
    grpc.StatusCode.DEADLINE_EXCEEDED: TeacherUnavailableError,
    grpc.StatusCode.CANCELLED: PreceptorError,
    grpc.StatusCode.UNKNOWN: PreceptorError,
    grpc.StatusCode.ALREADY_EXISTS: PreceptorError,
    grpc.StatusCode.PERMISSION_DENIED: AccessDeniedError,
    grpc.StatusCode.ABORTED: PreceptorError,
    grpc.StatusCode.INTERNAL: PreceptorError,
    grpc.StatusCode.DATA_LOSS: PreceptorError,
    grpc.StatusCode.UNAUTHENTICATED: AccessDeniedError,
}


def test_every_code_is_either_retried_or_has_an_expected_error() -> None:
    retried = {grpc.StatusCode.OK, grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED}
    assert set(EXPECTED_ERRORS) | retried == set(grpc.StatusCode)


@pytest.mark.parametrize("code", EXPECTED_ERRORS)
async def test_other_codes_are_asked_once_and_raise_their_error(code: grpc.StatusCode) -> None:
    teacher = ScriptedTeacher([Abort(code=code, message="because", reason="SOME_REASON")])
    async with serving(teacher) as address, TeacherClient(address, retry=QUICK, timeout_seconds=5) as client:
        with pytest.raises(PreceptorError, match="because") as caught:
            await client.score(TeacherIds([1]), [[1]], top_k=2)
    assert type(caught.value) is EXPECTED_ERRORS[code]
    assert address in str(caught.value)
    assert len(teacher.requests) == 1


@pytest.mark.parametrize("passing", [OVERLOAD, GONE, ENGINE_DIED])
async def test_passing_failure_is_asked_again_with_the_same_request(passing: Abort) -> None:
    teacher = ScriptedTeacher([passing, passing])
    async with serving(teacher) as address, TeacherClient(address, retry=QUICK, timeout_seconds=5) as client:
        scores = await client.score(TeacherIds([1]), [[1]], top_k=2)
    assert len(scores.responses) == 1
    assert len(teacher.requests) == 3
    assert teacher.requests[0] == teacher.requests[1] == teacher.requests[2]


async def test_refusal_carries_the_servers_field_and_reason() -> None:
    abort = Abort(code=grpc.StatusCode.OUT_OF_RANGE, reason="TOKEN_OUT_OF_RANGE", field="responses[0].ids")
    async with serving(ScriptedTeacher([abort])) as address, TeacherClient(address) as client:
        with pytest.raises(InvalidRequestError) as caught:
            await client.score(TeacherIds([1]), [[1]], top_k=2)
    assert (caught.value.field, caught.value.reason) == ("responses[0].ids", "TOKEN_OUT_OF_RANGE")


async def test_details_of_another_domain_are_not_the_servers() -> None:
    abort = Abort(code=grpc.StatusCode.RESOURCE_EXHAUSTED, reason="RATE_LIMITED", domain="proxy.example")
    teacher = ScriptedTeacher([abort])
    async with serving(teacher) as address, TeacherClient(address, retry=QUICK, timeout_seconds=5) as client:
        with pytest.raises(MessageTooLargeError):
            await client.score(TeacherIds([1]), [[1]], top_k=2)
    assert len(teacher.requests) == 1


async def test_answer_beyond_the_message_limit_is_asked_once() -> None:
    teacher = ScriptedTeacher()
    async with serving(teacher) as address, TeacherClient(address, retry=QUICK, max_message_bytes=2000) as client:
        with pytest.raises(MessageTooLargeError, match=r"smaller top_k.*max_message_bytes") as caught:
            await client.score(TeacherIds([1]), [list(range(50))], top_k=30)
    assert "2000" in str(caught.value)
    assert len(teacher.requests) == 1


async def test_request_beyond_the_servers_message_limit_is_not_repeated() -> None:
    teacher = ScriptedTeacher()
    events: list[RetryEvent] = []
    async with (
        serving(teacher, max_message_bytes=1000) as address,
        TeacherClient(address, retry=QUICK, on_retry=events.append) as client,
    ):
        with pytest.raises(MessageTooLargeError, match=r"larger than max.*the request has \d{4} bytes"):
            await client.score(TeacherIds([1] * 600), [[1]], top_k=2)
    assert (teacher.requests, events) == ([], [])


@pytest.mark.parametrize("passing", [OVERLOAD, ENGINE_DIED])
async def test_servers_retry_delay_is_a_lower_bound(passing: Abort) -> None:
    slow_down = replace(passing, retry_after_seconds=0.3)
    events: list[RetryEvent] = []
    async with (
        serving(ScriptedTeacher([slow_down])) as address,
        TeacherClient(address, retry=QUICK, on_retry=events.append) as client,
    ):
        started = time.monotonic()
        await client.score(TeacherIds([1]), [[1]], top_k=2)
        waited = time.monotonic() - started
    assert waited >= 0.3
    assert 0.3 <= events[0].next_delay_seconds <= 0.3 + QUICK.max_seconds


async def test_retry_delay_beyond_the_deadline_gives_up_at_once() -> None:
    slow_down = Abort(code=grpc.StatusCode.RESOURCE_EXHAUSTED, reason="QUEUE_FULL", retry_after_seconds=0.9)
    teacher = ScriptedTeacher([slow_down])
    async with serving(teacher) as address, TeacherClient(address, timeout_seconds=0.8) as client:
        started = time.monotonic()
        with pytest.raises(TeacherUnavailableError, match="1 attempt"):
            await client.score(TeacherIds([1]), [[1]], top_k=2)
    assert time.monotonic() - started < 0.7


async def test_each_retry_is_told_to_the_caller() -> None:
    events: list[RetryEvent] = []
    async with (
        serving(ScriptedTeacher([OVERLOAD, GONE])) as address,
        TeacherClient(address, retry=QUICK, on_retry=events.append) as client,
    ):
        await client.score(TeacherIds([1]), [[1]], top_k=2)
    assert [(event.attempt, event.code, event.message) for event in events] == [
        (1, "RESOURCE_EXHAUSTED", "queue is full"),
        (2, "UNAVAILABLE", "draining"),
    ]
    assert 0 < events[0].elapsed_seconds < events[1].elapsed_seconds


async def test_deadline_ends_a_call_that_hangs_and_cancels_it_at_the_server() -> None:
    teacher = ScriptedTeacher([Hang(seconds=30)])
    async with serving(teacher) as address, TeacherClient(address) as client:
        with pytest.raises(TeacherUnavailableError, match=r"waited 0\.\d s of at most 0\.3 s, 1 attempt"):
            await client.score(TeacherIds([1]), [[1]], top_k=2, timeout_seconds=0.3)
        await asyncio.sleep(0.1)
    assert teacher.num_cancelled == 1


async def test_attempt_that_outlasts_its_own_timeout_is_repeated() -> None:
    teacher = ScriptedTeacher([Hang(seconds=30)])
    async with (
        serving(teacher) as address,
        TeacherClient(address, timeout_seconds=10, attempt_timeout_seconds=0.3, retry=QUICK) as client,
    ):
        await client.score(TeacherIds([1]), [[1]], top_k=2)
    assert len(teacher.requests) == 2


async def test_attempt_that_the_server_could_not_answer_within_its_own_timeout_is_repeated() -> None:
    """A server drops at once what cannot be answered before its deadline, which was the attempt's."""
    late = Abort(code=grpc.StatusCode.DEADLINE_EXCEEDED, message="too much waits", reason="DEADLINE_PASSED")
    teacher = ScriptedTeacher([late, late])
    async with serving(teacher) as address, TeacherClient(address, timeout_seconds=20, retry=QUICK) as client:
        with pytest.raises(TeacherUnavailableError, match="too much waits"):  # the deadline was the call's own
            await client.score(TeacherIds([1]), [[1]], top_k=2)
    async with (
        serving(teacher) as address,
        TeacherClient(address, timeout_seconds=20, attempt_timeout_seconds=10, retry=QUICK) as client,
    ):
        await client.score(TeacherIds([1]), [[1]], top_k=2)
    assert len(teacher.requests) == 3


async def test_giving_up_says_where_how_long_and_why() -> None:
    teacher = ScriptedTeacher([GONE] * 1000)
    async with serving(teacher) as address, TeacherClient(address, retry=QUICK, timeout_seconds=0.3) as client:
        with pytest.raises(TeacherUnavailableError) as caught:
            await client.score(TeacherIds([1]), [[1]], top_k=2)
    message = str(caught.value)
    assert address in message
    # The deadline may end the last one on its way to the server.
    nums_attempts = (len(teacher.requests), len(teacher.requests) + 1)
    assert any(f" {num_attempts} attempt(s)" in message for num_attempts in nums_attempts)
    assert "of at most 0.3 s" in message
    assert "UNAVAILABLE: draining" in message


async def test_server_that_appears_later_is_found() -> None:
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        port = reserved.getsockname()[1]
    events: list[RetryEvent] = []
    async with TeacherClient(f"127.0.0.1:{port}", retry=QUICK, timeout_seconds=20, on_retry=events.append) as client:
        call = asyncio.create_task(client.score(TeacherIds([1]), [[1]], top_k=2))
        await asyncio.sleep(0.5)
        assert not call.done()
        async with serving(ScriptedTeacher(), port=port):
            scores = await call
    assert len(scores.responses) == 1
    assert {event.code for event in events} == {"UNAVAILABLE"}


async def test_corrupt_answer_is_not_asked_for_again() -> None:
    teacher = ScriptedTeacher([Lie(change=lambda answer: setattr(answer, "top_k", 3))])
    async with serving(teacher) as address, TeacherClient(address, retry=QUICK) as client:
        with pytest.raises(PreceptorError):
            await client.score(TeacherIds([1]), [[1]], top_k=2)
    assert len(teacher.requests) == 1


async def test_closed_client_refuses_to_call() -> None:
    async with serving(ScriptedTeacher()) as address:
        client = TeacherClient(address)
        await client.info()
        await client.close()
        await client.close()
        with pytest.raises(RuntimeError, match="is closed"):
            await client.info()


def test_backoff_doubles_up_to_its_limit() -> None:
    policy = RetryPolicy()
    assert [policy.ceiling_seconds(attempt) for attempt in (1, 2, 3, 5, 6, 10_000)] == [0.2, 0.4, 0.8, 3.2, 5.0, 5.0]


def test_backoff_is_jittered_over_its_whole_range() -> None:
    policy = RetryPolicy()
    delays = [policy.delay_seconds(3, at_least=1.0) for _ in range(2000)]
    assert 1.0 <= min(delays) < 1.04
    assert 1.76 < max(delays) <= 1.8


@pytest.mark.parametrize("wrong", [(0.0, 5.0, 2.0), (6.0, 5.0, 2.0), (0.2, 5.0, 0.5)])
def test_policy_that_cannot_back_off_is_refused(wrong: tuple[float, float, float]) -> None:
    with pytest.raises(ValueError, match="must be"):
        RetryPolicy(*wrong)
