"""A transport in the place of a network, and how many calls a client makes at once, whatever carries them."""

from __future__ import annotations

import asyncio
import inspect
import textwrap
from typing import Any

import grpc
import pytest
from preceptor.v1 import teacher_pb2
from preceptor_client import (
    BlockingTeacherClient,
    RetryPolicy,
    StudentIds,
    TeacherClient,
    TeacherIds,
    Transport,
    TransportError,
)
from preceptor_client.errors import InvalidRequestError, NotImplementedByServerError, TeacherUnavailableError
from preceptor_client.options import ClientOptions
from preceptor_client.types import ServerInfo

from tests.unit.client.in_memory import InMemory
from tests.unit.client.test_replicas import TOKENIZER

QUICK = RetryPolicy(initial_seconds=0.001, max_seconds=0.01)


async def test_every_call_is_answered_without_a_network() -> None:
    transport: Transport = InMemory()
    assert isinstance(transport, InMemory)
    async with TeacherClient("nobody:1", transport=transport, caller="me", objective="interactive") as client:
        assert (await client.info()).server_version == "9.8.7"
        registered = await client.register_tokenizer(TOKENIZER)
        scores = await client.score(StudentIds([1]), [[5, 6]], top_k=4, tokenizer_id=registered.tokenizer_id)
        assert scores.responses[0].support_ids_NK.shape == (2, 4)
        assert (await client.update_weights("new")).revision == "of new"
    assert [method for method, _ in transport.asked] == [
        *("GetInfo", "RegisterTokenizer", "RegisterTokenizer", "Score", "UpdateWeights")
    ]
    assert transport.metadata[0] == {"preceptor-caller": "me", "preceptor-objective": "interactive"}
    assert transport.is_closed


async def test_a_transports_errors_are_those_of_a_server() -> None:
    transport = InMemory()
    async with TeacherClient("nobody:1", transport=transport, retry=QUICK, timeout_seconds=0.2) as client:
        transport.failure = TransportError(grpc.StatusCode.INVALID_ARGUMENT, "no", reason="BAD", field="top_k")
        with pytest.raises(InvalidRequestError, match="INVALID_ARGUMENT: no") as caught:
            await client.info()
        assert (caught.value.field, caught.value.reason) == ("top_k", "BAD")
        transport.failure = TransportError(grpc.StatusCode.UNAVAILABLE, "gone")
        with pytest.raises(TeacherUnavailableError):
            await client.info()
    assert transport.num_calls > 2


async def test_the_transport_of_the_docstring_runs() -> None:
    lines = inspect.cleandoc(Transport.__doc__ or "").splitlines()
    code = textwrap.dedent("\n".join(line for line in lines if line.startswith("    ") or not line))
    names: dict[str, Any] = {  # Any: what the docstring defines
        **{"teacher_pb2": teacher_pb2, "TransportError": TransportError, "grpc": grpc, "TeacherClient": TeacherClient}
    }
    exec("async def run():\n" + textwrap.indent(code, "    ") + "\n    return TwoWords, info\n", names)
    transport, info = await names["run"]()
    assert isinstance(info, ServerInfo)
    assert info.teachers[0].name == "tutor"
    async with TeacherClient("nobody:1", transport=transport()) as client:
        with pytest.raises(NotImplementedByServerError, match="no Score here"):
            await client.score(TeacherIds([1]), [[1]], top_k=2)


async def test_a_transport_that_forgets_the_time_is_cut_short() -> None:
    transport = InMemory()
    transport.seconds["nobody:1"] = 1000
    async with TeacherClient("nobody:1", transport=transport, timeout_seconds=0.1) as client:
        with pytest.raises(TeacherUnavailableError, match="DEADLINE_EXCEEDED"):
            await client.score(TeacherIds([1]), [[1]], top_k=2)
    assert transport.num_cancelled == 1


def test_the_options_of_the_blocking_twin_are_those_of_the_client() -> None:
    parameters = inspect.signature(TeacherClient.__init__).parameters
    assert sorted(set(parameters) - {"self", "address"}) == sorted(ClientOptions.__annotations__)
    with BlockingTeacherClient("nobody:1", transport=InMemory(), objective="batch") as client:
        assert client.info().server_version == "9.8.7"


async def test_no_more_calls_are_made_at_once_than_the_bound_and_the_rest_wait_in_order() -> None:
    transport = InMemory()
    transport.seconds["nobody:1"] = 0.001
    ended: list[int] = []

    async def score(number: int) -> None:
        await client.score(TeacherIds([1]), [[number % 50]], top_k=2)
        ended.append(number)

    async with TeacherClient("nobody:1", transport=transport, max_concurrent_calls=1, timeout_seconds=60) as client:
        await asyncio.gather(*(score(number) for number in range(50)))
        assert (transport.most_at_once, ended) == (1, list(range(50)))
    async with TeacherClient("nobody:1", transport=transport, timeout_seconds=60) as client:
        await asyncio.gather(*(score(number) for number in range(500)))
    assert transport.most_at_once == 64


async def test_with_several_replicas_the_bound_is_each_ones() -> None:
    transport = InMemory()
    transport.seconds = {"a:1": 0.002, "b:1": 0.002}
    async with TeacherClient("a:1,b:1", transport=transport, max_concurrent_calls=4, timeout_seconds=60) as client:
        await asyncio.gather(*(client.score(TeacherIds([n % 60]), [[1]], top_k=2) for n in range(300)))
    assert 4 < transport.most_at_once <= 8
    # Many calls at once are no reason to compare the replicas many times.
    assert [method for method, _ in transport.asked].count("GetInfo") == 2


async def test_request_bytes_in_flight_are_bounded() -> None:
    transport = InMemory()
    transport.seconds["nobody:1"] = 0.001
    async with TeacherClient("nobody:1", transport=transport, max_bytes_in_flight=5000, timeout_seconds=60) as client:
        # 2,000 ids of two bytes: one request each time.
        await asyncio.gather(*(client.score(TeacherIds([1] * 2000), [[1]], top_k=2) for _ in range(20)))
        assert transport.most_at_once == 1
        await asyncio.gather(*(client.score(TeacherIds([1] * 500), [[1]], top_k=2) for _ in range(20)))
    assert transport.most_at_once == 4


async def test_the_deadline_counts_while_a_call_waits_for_its_turn() -> None:
    transport = InMemory()
    transport.seconds["nobody:1"] = 1000
    async with TeacherClient("nobody:1", transport=transport, max_concurrent_calls=1) as client:
        first = asyncio.create_task(client.score(TeacherIds([1]), [[1]], top_k=2))
        await asyncio.sleep(0.05)
        with pytest.raises(
            TeacherUnavailableError, match=r"was not asked: 1 calls of this client were under way for 0\.2 s"
        ):
            await client.score(TeacherIds([1]), [[1]], top_k=2, timeout_seconds=0.2)
        # A score may need one of these to go on.
        assert (await client.info(timeout_seconds=5)).server_version == "9.8.7"
        first.cancel()
        await asyncio.wait([first])
    assert transport.num_cancelled == 1


@pytest.mark.parametrize("wrong", ["max_concurrent_calls", "max_bytes_in_flight", "hedge_seconds"])
def test_bounds_of_nothing_are_refused(wrong: str) -> None:
    with pytest.raises(ValueError, match=f"{wrong}=0 must be above 0"):
        TeacherClient("a:1", **{wrong: 0})  # type: ignore[arg-type]  # one of them
