"""The blocking twin: the same answers and errors, from code without an event loop."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Future
from contextlib import contextmanager

import grpc
import numpy as np
import pytest
from preceptor_client import BlockingTeacherClient, RetryPolicy, TeacherClient, TeacherIds
from preceptor_client.errors import InvalidRequestError, TeacherUnavailableError

from tests.unit.client.scripted_teacher import Abort, Hang, ScriptedTeacher, serving


@contextmanager
def served_elsewhere(teacher: ScriptedTeacher) -> Iterator[str]:
    """Serves from another thread, so that the test's own may block."""
    address: Future[str] = Future()
    loop = asyncio.new_event_loop()
    stopped = asyncio.Event()

    async def serve() -> None:
        async with serving(teacher) as listening:
            address.set_result(listening)
            await stopped.wait()

    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),))
    thread.start()
    try:
        yield address.result(timeout=10)
    finally:
        loop.call_soon_threadsafe(stopped.set)
        thread.join()
        loop.close()


def test_answers_equal_those_of_the_async_client() -> None:
    async def ask(address: str) -> list[np.float32]:
        async with TeacherClient(address) as client:
            scores = await client.score(TeacherIds([1]), [[10, 20]], top_k=4)
        return list(scores.responses[0].sampled_logprobs_N)

    with served_elsewhere(ScriptedTeacher()) as address:
        with BlockingTeacherClient(address) as client:
            scores = client.score(TeacherIds([1]), [np.array([10, 20])], top_k=4)
            assert client.info().teachers[0].name == "tutor"
        assert list(scores.responses[0].sampled_logprobs_N) == asyncio.run(ask(address))


def test_submitted_calls_run_at_once() -> None:
    teacher = ScriptedTeacher([Hang(seconds=0.5)] * 8)
    with served_elsewhere(teacher) as address, BlockingTeacherClient(address) as client:
        started = time.monotonic()
        futures = [client.submit(TeacherIds([1]), [[token]], top_k=2) for token in range(8)]
        scores = [future.result(timeout=10) for future in futures]
        took = time.monotonic() - started
    assert len(scores) == 8
    # One after the other they would take 4 s.
    assert took < 2


def test_errors_are_those_of_the_async_client() -> None:
    refusal = Abort(code=grpc.StatusCode.INVALID_ARGUMENT, reason="BAD", field="top_k")
    with (
        served_elsewhere(ScriptedTeacher([refusal])) as address,
        BlockingTeacherClient(address) as client,
        pytest.raises(InvalidRequestError) as caught,
    ):
        client.score(TeacherIds([1]), [[1]], top_k=2)
    assert caught.value.field == "top_k"


def test_nobody_there_is_unavailable_within_the_deadline() -> None:
    retry = RetryPolicy(initial_seconds=0.01, max_seconds=0.05)
    with BlockingTeacherClient("127.0.0.1:1", timeout_seconds=0.5, retry=retry) as client:
        started = time.monotonic()
        with pytest.raises(TeacherUnavailableError, match=r"127.0.0.1:1 gave no answer.*UNAVAILABLE"):
            client.info()
    assert time.monotonic() - started < 3


def test_cancelled_future_cancels_at_the_server() -> None:
    teacher = ScriptedTeacher([Hang(seconds=30)])
    with served_elsewhere(teacher) as address, BlockingTeacherClient(address) as client:
        future = client.submit(TeacherIds([1]), [[1]], top_k=2)
        wait_until(lambda: bool(teacher.requests))
        future.cancel()
        wait_until(lambda: teacher.num_cancelled == 1)


def test_closing_cancels_what_is_in_flight_and_ends_the_thread() -> None:
    teacher = ScriptedTeacher([Hang(seconds=30)])
    with served_elsewhere(teacher) as address:
        client = BlockingTeacherClient(address)
        future = client.submit(TeacherIds([1]), [[1]], top_k=2)
        wait_until(lambda: bool(teacher.requests))
        client.close()
        client.close()
        with pytest.raises(CancelledError):
            future.result(timeout=1)
        assert f"preceptor {address}" not in [thread.name for thread in threading.enumerate()]


def test_closed_client_refuses_to_call() -> None:
    client = BlockingTeacherClient("127.0.0.1:1")
    client.close()
    with pytest.raises(RuntimeError, match="closed"):
        client.info()


def test_a_client_that_is_being_closed_takes_nothing_that_nobody_would_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    client = BlockingTeacherClient("127.0.0.1:1")
    refusals = []
    join = client._thread.join

    def join_and_ask() -> None:
        join()  # the loop has ended, and is not closed yet
        with pytest.raises(RuntimeError, match="closed") as caught:
            client.submit(TeacherIds([1]), [[1]], top_k=2)
        refusals.append(caught.value)
        client.close()

    monkeypatch.setattr(client._thread, "join", join_and_ask)
    client.close()
    assert len(refusals) == 1


def wait_until(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not is_so():
        assert time.monotonic() < deadline, "waited for 10 s"
        time.sleep(0.01)
