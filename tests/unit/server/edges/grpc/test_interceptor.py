"""What stands before every method: who asks, what is read, and what an error becomes, over real connections."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import grpc
import numpy as np
import pytest
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2
from grpc_status import rpc_status
from preceptor.v1 import teacher_pb2 as pb
from preceptor_server.callers import Caller, Transport
from preceptor_server.config import ListenConfig
from preceptor_server.edges.grpc.interceptor import RIGHTS, SERVICE
from preceptor_server.edges.grpc.server import add_services, bind, build_server
from preceptor_server.edges.grpc.servicer import TeacherServicer
from preceptor_server.edges.identity import Identity
from preceptor_server.errors import UnauthenticatedError, reason_of
from preceptor_server.serving import ScoreService
from preceptor_server.teachers import Teachers
from preceptor_server.tenants.tenant import Right, Tenant
from preceptor_server.weights import WeightUpdates

from tests.unit.server.hosting import hosted_teacher

MALFORMED = b"\xff\xff\xff\xff\xff"
"""A tag that never ends."""


class Keys:
    """A directory with one key per tenant."""

    has_keys = True

    def __init__(self, **tenants: Tenant) -> None:
        self._tenants = tenants

    def peer_name(self, peer: str) -> str:
        return "here"

    def identify(self, key: str | None, *, peer: str) -> Tenant:
        if key is None:
            raise UnauthenticatedError("no key", reason="NO_KEY")
        if key not in self._tenants:
            raise UnauthenticatedError("unknown key", reason="UNKNOWN_KEY")
        return self._tenants[key]


class Refusals:
    def __init__(self) -> None:
        self.seen: list[tuple[str, str]] = []

    def refused(self, error: Exception, *, caller: Caller | None, peer: str, method: str, transport: Transport) -> None:
        self.seen.append((caller.tenant.name if caller else peer, reason_of(error)))


@asynccontextmanager
async def serving(
    *, listen: ListenConfig | None = None, identity: Identity | None = None, observer: Refusals | None = None
) -> AsyncIterator[Any]:  # Any: a channel whose calls carry bytes
    """A teacher named professor, and one named dean, on a real port."""
    professor = hosted_teacher()
    teachers = Teachers([professor, replace(hosted_teacher(), name="dean")])
    for teacher in teachers.hosted:
        teacher.scheduler.start()
    listen = listen or ListenConfig(port=0)
    server = build_server(listen, max_message_bytes=1 << 20, identity=identity, observer=observer)
    address = bind(server, listen)
    add_services(server, TeacherServicer(ScoreService(teachers), WeightUpdates()))
    await server.start()
    try:
        async with grpc.aio.insecure_channel(address) as channel:
            yield channel
    finally:
        await server.stop(None)
        for teacher in teachers.hosted:
            await teacher.scheduler.stop()


def group(teacher: str = "professor") -> bytes:
    ids = pb.TokenIds(data=np.array([3, 4], "<u2").tobytes(), dtype=pb.TOKEN_DTYPE_U16)
    prompt, responses = pb.Prompt(teacher_ids=ids), [pb.Response(ids=ids)]
    request = pb.ScoreRequest(teacher=teacher, prompt=prompt, responses=responses, top_k=2, temperature=1)
    return request.SerializeToString()


async def called(
    channel: Any, method: str, data: bytes, *, key: str = "", timeout: float = 20
) -> tuple[grpc.StatusCode, str]:
    """The code, and the message of an error."""
    metadata = (("authorization", f"Bearer {key}"),) if key else ()
    try:
        await channel.unary_unary(method)(data, metadata=metadata, timeout=timeout)
    except grpc.aio.AioRpcError as error:
        return error.code(), error.details() or ""
    return grpc.StatusCode.OK, ""


@pytest.mark.parametrize("method", [*RIGHTS, "/grpc.health.v1.Health/Check"])
async def test_bytes_that_are_no_message_are_the_callers_mistake_and_are_not_logged(
    method: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving() as channel:
        with caplog.at_level(logging.INFO):
            code, _ = await called(channel, method, MALFORMED)
        assert await called(channel, f"{SERVICE}Score", group()) == (grpc.StatusCode.OK, "")
    # Without a key nobody may update weights, whatever the bytes are.
    assert code is grpc.StatusCode.INVALID_ARGUMENT or (method, code) == (
        f"{SERVICE}UpdateWeights",
        grpc.StatusCode.PERMISSION_DENIED,
    )
    assert caplog.text == ""


async def test_streams_of_other_services_refuse_bytes_that_are_no_message() -> None:
    async with serving() as channel:
        watching = channel.unary_stream("/grpc.health.v1.Health/Watch")(MALFORMED)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await watching.read()
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        method = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
        reflecting = channel.stream_stream(method)()
        await reflecting.write(MALFORMED)
        with pytest.raises(grpc.aio.AioRpcError) as reflected:
            await reflecting.read()
        assert reflected.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_strangers_cannot_have_large_messages_kept_by_a_watch() -> None:
    name = "x" * 100_000
    async with serving(identity=Identity(Keys())) as channel:
        large = health_pb2.HealthCheckRequest(service=name).SerializeToString()
        watching = channel.unary_stream("/grpc.health.v1.Health/Watch")(large, timeout=20)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await watching.read()
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        small = health_pb2.HealthCheckRequest(service=name[:1000]).SerializeToString()
        answer = await channel.unary_stream("/grpc.health.v1.Health/Watch")(small, timeout=20).read()
        told = health_pb2.HealthCheckResponse.FromString(answer)
        assert told.status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN


async def test_health_and_reflection_work_without_a_key() -> None:
    async with serving(identity=Identity(Keys())) as channel:
        request = health_pb2.HealthCheckRequest().SerializeToString()
        assert (await called(channel, "/grpc.health.v1.Health/Check", request))[0] is grpc.StatusCode.OK


async def test_a_method_that_is_gone_is_unimplemented() -> None:
    async with serving() as channel:
        assert (await called(channel, f"{SERVICE}ScoreStream", b""))[0] is grpc.StatusCode.UNIMPLEMENTED


async def test_a_call_without_a_message_is_refused() -> None:
    async with serving() as channel:
        call = channel.stream_unary(f"{SERVICE}Score")(timeout=20)
        await call.done_writing()
        with pytest.raises(grpc.aio.AioRpcError, match="has no message") as caught:
            await call
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_a_message_that_does_not_come_is_not_waited_for_and_stops_nobody_else() -> None:
    # Two slots in all, one of them for each tenant.
    listen = ListenConfig(port=0, read_seconds=0.5, max_bytes_in_flight=1 << 20)
    keys = Keys(a=Tenant(name="a"), b=Tenant(name="b"))
    async with serving(listen=listen, identity=Identity(keys)) as channel:
        slow = [
            channel.stream_unary(f"{SERVICE}Score")(metadata=(("authorization", "Bearer a"),), timeout=20)
            for _ in range(3)
        ]
        await asyncio.sleep(0.1)
        assert (await called(channel, f"{SERVICE}Score", group(), key="b"))[0] is grpc.StatusCode.OK
        for call in slow:
            with pytest.raises(grpc.aio.AioRpcError, match=r"did not come within listen\.read_seconds=0\.5"):
                await call


async def test_more_bytes_than_the_server_may_hold_are_sent_away_with_a_delay() -> None:
    async with serving(listen=ListenConfig(port=0, max_bytes_in_flight=1 << 20)) as channel:
        large = pb.ScoreRequest(request_id="x" * (1 << 20)).SerializeToString()[: 1 << 20]
        code, message = await called(channel, f"{SERVICE}Score", large)
        # Of the largest message exactly one fits.
        assert code is grpc.StatusCode.INVALID_ARGUMENT, message


async def test_without_a_key_with_a_wrong_one_and_without_a_right() -> None:
    looker = Tenant(name="looker", rights=frozenset({Right.LOOK}))
    observer = Refusals()
    async with serving(identity=Identity(Keys(looks=looker)), observer=observer) as channel:
        score = f"{SERVICE}Score"
        assert (await called(channel, score, group()))[0] is grpc.StatusCode.UNAUTHENTICATED
        assert (await called(channel, score, group(), key="other"))[0] is grpc.StatusCode.UNAUTHENTICATED
        code, message = await called(channel, score, group(), key="looks")
        assert (code, "does not have the right score" in message) == (grpc.StatusCode.PERMISSION_DENIED, True)
        # GetInfo needs no right besides a valid key.
        assert (await called(channel, f"{SERVICE}GetInfo", b"", key="looks"))[0] is grpc.StatusCode.OK
    assert observer.seen == [("here", "NO_KEY"), ("here", "UNKNOWN_KEY"), ("looker", "MISSING_RIGHT")]


async def test_of_two_keys_the_first_counts_as_over_http() -> None:
    keys = Keys(one=Tenant(name="one", teachers=frozenset({"dean"})), all=Tenant(name="all"))
    async with serving(identity=Identity(keys)) as channel:
        get_info = channel.unary_unary(f"{SERVICE}GetInfo", response_deserializer=pb.GetInfoResponse.FromString)
        both = (("authorization", "Bearer one"), ("authorization", "Bearer all"))
        assert [teacher.name for teacher in (await get_info(b"", metadata=both)).teachers] == ["dean"]
        both = (both[1], both[0])
        assert [teacher.name for teacher in (await get_info(b"", metadata=both)).teachers] == ["dean", "professor"]


async def test_a_tenant_sees_and_uses_its_own_teachers_alone() -> None:
    keys = Keys(one=Tenant(name="one", teachers=frozenset({"dean"})), all=Tenant(name="all"))
    async with serving(identity=Identity(keys)) as channel:
        get_info = channel.unary_unary(f"{SERVICE}GetInfo", response_deserializer=pb.GetInfoResponse.FromString)
        for key, names in (("one", ["dean"]), ("all", ["dean", "professor"])):
            info = await get_info(b"", metadata=(("authorization", f"Bearer {key}"),))
            assert [teacher.name for teacher in info.teachers] == names
        code, message = await called(channel, f"{SERVICE}Score", group("professor"), key="one")
        assert (code, "may not use the teacher 'professor'" in message) == (grpc.StatusCode.PERMISSION_DENIED, True)
        assert (await called(channel, f"{SERVICE}Score", group(""), key="one"))[0] is grpc.StatusCode.OK
        code, message = await called(channel, f"{SERVICE}Score", group(""), key="all")
        assert (code, "'dean', 'professor'" in message) == (grpc.StatusCode.INVALID_ARGUMENT, True)


@pytest.mark.parametrize("name", ["professor", "nobody", ""])
async def test_a_teacher_that_a_tenant_may_not_use_is_refused_and_told_whether_it_exists_or_not(name: str) -> None:
    observer = Refusals()
    keys = Keys(elsewhere=Tenant(name="elsewhere", teachers=frozenset({"another"})))
    async with serving(identity=Identity(keys), observer=observer) as channel:
        call = channel.unary_unary(f"{SERVICE}Score")(group(name), metadata=(("authorization", "Bearer elsewhere"),))
        with pytest.raises(grpc.aio.AioRpcError, match="tenant elsewhere may not use") as caught:
            await call
    status = rpc_status.from_call(caught.value)
    info = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(info)
    assert (caught.value.code(), info.reason) == (grpc.StatusCode.PERMISSION_DENIED, "TEACHER_NOT_ALLOWED")
    assert observer.seen == [("elsewhere", "TEACHER_NOT_ALLOWED")]
