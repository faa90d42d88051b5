"""What a large message leaves in memory: while it waits, and once it has been answered or refused."""

from __future__ import annotations

import asyncio
import gc
import tracemalloc
import weakref
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import grpc
import numpy as np
import pytest
from preceptor.v1 import teacher_pb2 as pb
from preceptor_server.calls import ScoreCall, ScoredCall
from preceptor_server.config import ListenConfig, SchedulerConfig
from preceptor_server.edges.grpc.decoding import decode_score_request
from preceptor_server.edges.grpc.interceptor import SERVICE, _decoder
from preceptor_server.edges.grpc.server import add_services, bind, build_server
from preceptor_server.edges.grpc.servicer import TeacherServicer
from preceptor_server.hosted import HostedTeacher
from preceptor_server.scheduling.scheduler import Scheduler
from preceptor_server.serving import ScoreService
from preceptor_server.teachers import Teachers
from preceptor_server.weights import WeightUpdates

from tests.unit.server.hosting import hosted_teacher

POSITIONS, WIDTH, VOCABULARY = 1000, 1000, 1000
MESSAGE_BYTES = POSITIONS * WIDTH * 2
LARGEST_MESSAGE = 3 << 20
"""Less than two of them."""
SMALL_BYTES = 256 * 1024
"""Of all else: what a server and its calls need besides."""


class NotingService(ScoreService):
    """Notes which candidates it was given, without keeping them."""

    def __init__(self, teachers: Teachers) -> None:
        super().__init__(teachers)
        self.seen: list[weakref.ref[Any]] = []

    async def score(self, call: ScoreCall, *arguments: Any, **options: Any) -> ScoredCall:  # Any: passed on
        self.seen += [weakref.ref(one.candidate_ids_TC) for one in call.responses if one.candidate_ids_TC is not None]
        return await super().score(call, *arguments, **options)

    @property
    def num_kept(self) -> int:
        return sum(one() is not None for one in self.seen)


def teacher_of(config: SchedulerConfig) -> HostedTeacher:
    teacher = hosted_teacher(vocabulary_size=VOCABULARY, max_model_len=2000)
    return replace(teacher, scheduler=Scheduler(teacher.engine, config))


@asynccontextmanager
async def serving(teacher: HostedTeacher) -> AsyncIterator[tuple[Any, NotingService]]:  # Any: a channel of bytes
    service = NotingService(Teachers([teacher]))
    server = build_server(ListenConfig(port=0), max_message_bytes=LARGEST_MESSAGE)
    address = bind(server, ListenConfig(port=0))
    add_services(server, TeacherServicer(service, WeightUpdates()))
    await server.start()
    try:
        async with grpc.aio.insecure_channel(address) as channel:
            yield channel.unary_unary(f"{SERVICE}Score"), service
    finally:
        await server.stop(None)
        await teacher.scheduler.stop()


def message(*, worst_id: int = VOCABULARY - 1, num_ids: int = POSITIONS * WIDTH) -> bytes:
    ids = np.arange(num_ids) % VOCABULARY
    ids[0] = worst_id
    named = pb.CandidateIds(
        ids=pb.TokenIds(data=ids.astype("<u2").tobytes(), dtype=pb.TOKEN_DTYPE_U16), num_per_position=WIDTH
    )
    tokens = pb.TokenIds(data=np.arange(POSITIONS).astype("<u2").tobytes(), dtype=pb.TOKEN_DTYPE_U16)
    response = pb.Response(ids=tokens, candidates=named)
    prompt = pb.Prompt(teacher_ids=tokens)
    return pb.ScoreRequest(prompt=prompt, responses=[response], top_k=2, temperature=1.0).SerializeToString()


async def code_of(score: Any, data: bytes, *, timeout: float = 20.0) -> str:  # Any: a method of bytes
    try:
        await score(data, timeout=timeout)
    except grpc.aio.AioRpcError as error:
        return str(error.code().name)
    return "OK"


async def until_waiting(teacher: HostedTeacher, *, num_groups: int = 1) -> None:
    async with asyncio.timeout(20):
        while teacher.scheduler.num_waiting < num_groups:
            await asyncio.sleep(0.01)


async def until_none_is_kept(service: NotingService) -> None:
    """The server's end of a call comes a little later than the client's."""
    async with asyncio.timeout(5):
        while service.num_kept:
            await asyncio.sleep(0.01)


@pytest.fixture
def without_search_for_cycles() -> Iterator[None]:
    """Python looks for cycles of old objects rarely: what needs it is kept for long."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("without_search_for_cycles")
@pytest.mark.parametrize(
    ("data", "config", "runs", "timeout", "code"),
    [
        (message(), SchedulerConfig(), True, 20.0, "OK"),
        (message(), SchedulerConfig(max_queue_bytes=MESSAGE_BYTES // 2), True, 20.0, "RESOURCE_EXHAUSTED"),
        (message(), SchedulerConfig(), False, 1.0, "DEADLINE_EXCEEDED"),
        (message(worst_id=VOCABULARY), SchedulerConfig(), True, 20.0, "INVALID_ARGUMENT"),
    ],
    ids=["answered", "queue full", "late", "wrong"],
)
async def test_nothing_of_a_large_message_is_kept_once_its_call_has_ended(
    data: bytes, config: SchedulerConfig, runs: bool, timeout: float, code: str
) -> None:
    teacher = teacher_of(config)
    if runs:
        teacher.scheduler.start()
    async with serving(teacher) as (score, service):
        assert await code_of(score, data, timeout=timeout) == code
        assert len(service.seen) == 1
        await until_none_is_kept(service)


@pytest.mark.usefixtures("without_search_for_cycles")
async def test_message_that_cannot_be_decoded_is_not_kept_either() -> None:
    async with serving(teacher_of(SchedulerConfig())) as (score, _):
        data = message(num_ids=POSITIONS * WIDTH - 1)
        assert await code_of(score, message(num_ids=1)) == "INVALID_ARGUMENT"  # loads what such an answer needs
        tracemalloc.start()
        assert await code_of(score, data) == "INVALID_ARGUMENT"
        await asyncio.sleep(0.1)
        kept, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert kept < SMALL_BYTES


async def test_large_message_leaves_its_turn_to_the_next_once_it_waits_in_the_queue() -> None:
    teacher = teacher_of(SchedulerConfig())
    async with serving(teacher) as (score, _):
        asking = [asyncio.ensure_future(score(message())) for _ in range(3)]
        await until_waiting(teacher, num_groups=3)
        for one in asking:
            one.cancel()


def test_decoding_lets_go_of_the_bytes_once_they_are_parsed() -> None:
    handler = SimpleNamespace(request_deserializer=pb.ScoreRequest.FromString)
    decode, taken = _decoder(handler, decode_score_request), [message()]
    tracemalloc.start()
    taken[0] = bytes(bytearray(taken[0]))  # a copy that is counted
    tracemalloc.reset_peak()
    call = decode(taken.pop())
    held, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert isinstance(call, ScoreCall)
    assert held <= MESSAGE_BYTES + SMALL_BYTES
    assert peak <= MESSAGE_BYTES + SMALL_BYTES


async def test_group_that_waits_holds_no_more_than_its_message_and_is_counted_so() -> None:
    teacher = teacher_of(SchedulerConfig())
    async with serving(teacher) as (score, service):
        await code_of(score, message(num_ids=1))
        data = message()
        tracemalloc.start()
        asking = asyncio.ensure_future(score(data))
        await until_waiting(teacher)
        held, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        counted = teacher.scheduler.num_waiting_bytes
        asking.cancel()
    assert MESSAGE_BYTES <= counted <= len(data) + SMALL_BYTES
    assert held <= counted + SMALL_BYTES
    # While it is read there are two copies, with what gRPC has, which is not counted here.
    assert peak <= 2 * len(data) + SMALL_BYTES
    assert service.seen
