"""An engine that dies behind a real socket: health says so, callers are told to ask again, and it comes back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from preceptor.v1 import teacher_pb2 as pb
from preceptor.v1.teacher_pb2_grpc import TeacherServiceStub
from preceptor_client import TeacherClient, TeacherIds
from preceptor_client.retry import RetryEvent
from preceptor_client.status import Failure, read_failure

from tests.engines.mortal_fake import mortal_fake_arguments
from tests.integration.servers import RunningServer, running_server

SELF_TEST_GROUPS = 4
SECONDS = 60
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
DIES_AFTER = SELF_TEST_GROUPS + 1
"""One group is answered in every life; the next one kills."""


class Health:
    """The service's health as it changes."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        request = health_pb2.HealthCheckRequest(service="preceptor.v1.TeacherService")
        self._call = health_pb2_grpc.HealthStub(channel).Watch(request)

    async def becomes(self, status: health_pb2.HealthCheckResponse.ServingStatus.ValueType) -> None:
        """It is the very next that is heard of, so none in between is missed."""
        assert (await asyncio.wait_for(self._call.read(), SECONDS)).status == status


@asynccontextmanager
async def channel_to(server: RunningServer) -> AsyncIterator[grpc.aio.Channel]:
    async with grpc.aio.insecure_channel(server.address) as channel:
        yield channel


async def failure_of(channel: grpc.aio.Channel, *, num_tokens: int) -> Failure:
    """Why a single attempt fails: a bare stub retries nothing."""
    ids = pb.TokenIds(data=np.full(num_tokens, 7, "<u2").tobytes(), dtype=pb.TOKEN_DTYPE_U16)
    prompt = pb.Prompt(teacher_ids=pb.TokenIds(data=np.array([1], "<u2").tobytes(), dtype=pb.TOKEN_DTYPE_U16))
    request = pb.ScoreRequest(prompt=prompt, responses=[pb.Response(ids=ids)], top_k=4, temperature=1.0)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await TeacherServiceStub(channel).Score(request, timeout=SECONDS)
    return read_failure(caught.value)


async def test_what_is_in_flight_is_told_health_follows_and_a_client_simply_gets_its_answer(tmp_path: Path) -> None:
    events: list[RetryEvent] = []
    # Two groups of 400 tokens take two seconds each: whichever comes second kills the other.
    slow = mortal_fake_arguments(dies_after_groups=DIES_AFTER, seconds_per_token=0.005)
    with running_server(tmp_path, *slow) as server:
        async with (
            channel_to(server) as channel,
            TeacherClient(server.address, timeout_seconds=SECONDS, on_retry=events.append) as client,
        ):
            health = Health(channel)
            await health.becomes(SERVING)
            failures = await asyncio.gather(*(failure_of(channel, num_tokens=400) for _ in range(2)))
            await health.becomes(NOT_SERVING)
            for failure in failures:
                assert (failure.code, failure.reason) == (grpc.StatusCode.UNAVAILABLE, "ENGINE_DIED")
                assert failure.is_transient
                assert failure.retry_after_seconds > 0

            refused = await failure_of(channel, num_tokens=1)
            assert (refused.code, refused.reason) == (grpc.StatusCode.UNAVAILABLE, "ENGINE_UNAVAILABLE")
            assert refused.retry_after_seconds >= 1

            # The first is asked while the engine is dead, the second kills it again: neither caller notices.
            first = await client.score(TeacherIds([1]), [[5, 6]], top_k=4)
            await health.becomes(SERVING)
            second = await client.score(TeacherIds([1]), [[5, 6]], top_k=4)
            await health.becomes(NOT_SERVING)
            await health.becomes(SERVING)
        assert await asyncio.to_thread(server.stop) == 0
    assert {event.code for event in events} == {"UNAVAILABLE"}
    np.testing.assert_array_equal(
        first.responses[0].sampled_logprobs_N, second.responses[0].sampled_logprobs_N, "it is the same model"
    )
    assert "engine died" in server.log.read_text()


async def test_sigterm_ends_a_server_whose_engine_is_dead(tmp_path: Path) -> None:
    with running_server(tmp_path, *mortal_fake_arguments(dies_after_groups=DIES_AFTER)) as server:
        async with channel_to(server) as channel, TeacherClient(server.address) as client:
            health = Health(channel)
            await health.becomes(SERVING)
            await client.score(TeacherIds([1]), [[5]], top_k=4)
            assert (await failure_of(channel, num_tokens=1)).reason == "ENGINE_DIED"
            await health.becomes(NOT_SERVING)
        assert await asyncio.to_thread(server.stop) == 0
    log = server.log.read_text()
    assert "draining" in log
    assert "Traceback" not in log
