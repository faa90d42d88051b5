"""What a server, or a connection, ends without an answer is asked again; what this client ends itself is not."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import grpc
import pytest
from preceptor_client import RetryPolicy, TeacherClient, TeacherIds
from preceptor_client.errors import PreceptorError, TeacherUnavailableError

from tests.unit.client.scripted_teacher import Abort, Hang, ScriptedTeacher, serving

QUICK = RetryPolicy(initial_seconds=0.01, max_seconds=0.02)
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY = 1, 3, 4, 6, 7
ACK, END_HEADERS = 1, 4
# RFC 9113, section 7.
NO_ERROR, PROTOCOL_ERROR, INTERNAL_ERROR, REFUSED_STREAM, CANCEL, ENHANCE_YOUR_CALM = 0, 1, 2, 7, 8, 11


@dataclass
class RawServer:
    """An HTTP/2 server that resets every call, or sends the connection away."""

    resets_with: int | None = None
    closes: bool = False
    num_calls: int = 0
    writers: list[asyncio.StreamWriter] = field(default_factory=list)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.writers.append(writer)
        try:
            await reader.readexactly(len(PREFACE))
            writer.write(frame(SETTINGS, b""))
            while True:
                header = await reader.readexactly(9)
                stream = int.from_bytes(header[5:9], "big")
                payload = await reader.readexactly(int.from_bytes(header[:3], "big"))
                self.answer(header[3], header[4], payload, stream=stream, writer=writer)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    def answer(self, kind: int, flags: int, payload: bytes, *, stream: int, writer: asyncio.StreamWriter) -> None:
        if kind == SETTINGS and not flags & ACK:
            writer.write(frame(SETTINGS, b"", flags=ACK))
        elif kind == PING and not flags & ACK:
            writer.write(frame(PING, payload, flags=ACK))
        elif kind == HEADERS:
            self.num_calls += 1
            if self.resets_with is not None:
                writer.write(frame(RST_STREAM, self.resets_with.to_bytes(4, "big"), stream=stream))
            elif self.closes:
                writer.close()
            else:  # none of its streams was begun
                writer.write(frame(GOAWAY, bytes(4) + NO_ERROR.to_bytes(4, "big")))


def frame(kind: int, payload: bytes, *, flags: int = 0, stream: int = 0) -> bytes:
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload


@asynccontextmanager
async def raw(server: RawServer) -> AsyncIterator[str]:
    listening = await asyncio.start_server(server.serve, "127.0.0.1", 0)
    try:
        yield f"127.0.0.1:{listening.sockets[0].getsockname()[1]}"
    finally:
        for writer in server.writers:
            writer.close()
        listening.close()
        await listening.wait_closed()


@pytest.mark.parametrize("code", [NO_ERROR, PROTOCOL_ERROR, INTERNAL_ERROR, REFUSED_STREAM, CANCEL, ENHANCE_YOUR_CALM])
async def test_a_call_that_is_reset_is_asked_again(code: int) -> None:
    server = RawServer(resets_with=code)
    async with raw(server) as address, TeacherClient(address, retry=QUICK, timeout_seconds=2) as client:
        with pytest.raises(TeacherUnavailableError):
            await client.score(TeacherIds([1]), [[1]], top_k=2)
    assert server.num_calls > 2


@pytest.mark.parametrize("server", [RawServer(), RawServer(closes=True)], ids=["GOAWAY", "closed"])
async def test_a_connection_that_is_sent_away_is_asked_again(server: RawServer) -> None:
    async with raw(server) as address, TeacherClient(address, retry=QUICK, timeout_seconds=2) as client:
        with pytest.raises(TeacherUnavailableError):
            await client.score(TeacherIds([1]), [[1]], top_k=2)
    assert server.num_calls > 2


@pytest.mark.parametrize(
    "sent_away",
    [
        Abort(code=grpc.StatusCode.CANCELLED, message=""),
        Abort(code=grpc.StatusCode.UNAVAILABLE, message="draining", reason="DRAINING"),
        Abort(code=grpc.StatusCode.UNKNOWN, message="Stream removed"),
    ],
)
async def test_a_call_that_a_server_sends_away_is_answered_at_the_next_attempt(sent_away: Abort) -> None:
    teacher = ScriptedTeacher([sent_away] * 2)
    async with serving(teacher) as address, TeacherClient(address, retry=QUICK, timeout_seconds=10) as client:
        assert (await client.score(TeacherIds([1]), [[1]], top_k=2)).responses
    assert len(teacher.requests) == 3


async def test_calls_that_a_stopping_server_cancels_are_answered_by_the_next_one() -> None:
    first, second = ScriptedTeacher([Hang(seconds=1000)] * 40), ScriptedTeacher()
    async with serving(first) as address:
        client = TeacherClient(address, retry=QUICK, timeout_seconds=30)
        calls = [asyncio.create_task(client.score(TeacherIds([1]), [[n]], top_k=2)) for n in range(40)]
        async with asyncio.timeout(10):
            while len(first.requests) < 40:
                await asyncio.sleep(0.01)
    async with serving(second, port=int(address.split(":")[1])):
        scores = await asyncio.gather(*calls)
        await client.close()
    assert [len(one.responses) for one in scores] == [1] * 40
    assert len(second.requests) == 40


async def test_what_the_server_says_that_it_cancelled_is_not_repeated() -> None:
    teacher = ScriptedTeacher([Abort(code=grpc.StatusCode.CANCELLED, message="by an operator", reason="CANCELLED")])
    async with serving(teacher) as address, TeacherClient(address, retry=QUICK) as client:
        with pytest.raises(PreceptorError, match="by an operator"):
            await client.score(TeacherIds([1]), [[1]], top_k=2)
    assert len(teacher.requests) == 1


async def test_a_call_that_this_client_cancels_is_not_repeated() -> None:
    teacher = ScriptedTeacher([Hang(seconds=1000)])
    async with serving(teacher) as address, TeacherClient(address, retry=QUICK) as client:
        call = asyncio.create_task(client.score(TeacherIds([1]), [[1]], top_k=2))
        async with asyncio.timeout(10):
            while not teacher.requests:
                await asyncio.sleep(0.01)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        await asyncio.sleep(0.1)
    assert len(teacher.requests) == 1
    assert teacher.num_cancelled == 1


async def test_closing_the_client_ends_its_calls() -> None:
    teacher = ScriptedTeacher([Hang(seconds=1000)])
    async with serving(teacher) as address:
        client = TeacherClient(address, retry=QUICK)
        call = asyncio.create_task(client.score(TeacherIds([1]), [[1]], top_k=2))
        async with asyncio.timeout(10):
            while not teacher.requests:
                await asyncio.sleep(0.01)
            await client.close()
            with pytest.raises((asyncio.CancelledError, RuntimeError)):
                await call
    assert len(teacher.requests) == 1


async def test_new_weights_are_not_sent_again_where_the_first_sending_may_have_begun() -> None:
    teacher = ScriptedTeacher(update_script=[Abort(code=grpc.StatusCode.CANCELLED, message="")])
    async with serving(teacher) as address, TeacherClient(address, retry=QUICK) as client:
        with pytest.raises(PreceptorError, match="CANCELLED"):
            await client.update_weights("new")
    assert len(teacher.updates) == 1
