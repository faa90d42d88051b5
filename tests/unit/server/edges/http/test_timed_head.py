"""Connections whose request does not come are ended, and no others."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from preceptor_server.edges.http.config import HttpConfig
from preceptor_server.edges.http.listen import HttpSide
from preceptor_server.edges.identity import Identity
from preceptor_server.observability.config import ObserveConfig
from preceptor_server.observability.observatory import Observatory

SECONDS = 20
REQUEST = b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"


@asynccontextmanager
async def running(*, timeout_seconds: float = 60.0) -> AsyncIterator[HttpSide]:
    """A server that waits half a second for a head."""
    observatory = Observatory(ObserveConfig(), version="test")
    config = HttpConfig(port=0, head_seconds=0.5, timeout_seconds=timeout_seconds)
    side = HttpSide(config, identity=Identity(), observatory=observatory)
    side.start()
    try:
        yield side
    finally:
        await side.stop(0)


@asynccontextmanager
async def connected(side: HttpSide) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    host, _, port = side.address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        yield reader, writer
    finally:
        writer.close()


@asynccontextmanager
async def http_side() -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A connection to such a server."""
    async with running() as side, connected(side) as (reader, writer):
        yield reader, writer


@pytest.mark.parametrize(
    "sent", [b"", b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Slow: "], ids=["nothing", "half"]
)
async def test_a_head_that_does_not_come_is_not_waited_for(sent: bytes) -> None:
    async with http_side() as (reader, writer):
        writer.write(sent)
        assert await asyncio.wait_for(reader.read(), SECONDS) == b""


async def test_a_second_head_on_a_connection_is_not_waited_for_either() -> None:
    async with http_side() as (reader, writer):
        writer.write(REQUEST)
        first = await asyncio.wait_for(reader.readuntil(b"}"), SECONDS)
        assert first.startswith(b"HTTP/1.1 200")
        writer.write(REQUEST[:20])
        assert await asyncio.wait_for(reader.read(), SECONDS) == b""


async def test_a_body_that_goes_on_after_the_answer_is_not_waited_for() -> None:
    """A stranger who is refused could keep the connection by a byte now and then."""
    async with http_side() as (reader, writer):
        writer.write(b"POST /v1/topk HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 1000000\r\n\r\n")
        answer = await asyncio.wait_for(reader.readuntil(b"}"), SECONDS)
        assert answer.startswith(b"HTTP/1.1 415")
        rest = asyncio.create_task(reader.read())
        async with asyncio.timeout(SECONDS):
            while not rest.done():
                writer.write(b" ")
                await asyncio.sleep(0.05)
        assert rest.exception() is not None or rest.result() == b""


ASK = b"GET /openapi.json HTTP/1.1\r\nHost: 127.0.0.1\r\n"
NUM_ASKED = 400
"""20 MB of answers and more, which the kernel and a reader's buffer do not hold."""


async def test_answers_that_nobody_takes_are_not_kept_for_long() -> None:
    async with running(timeout_seconds=0.3) as side, connected(side) as (_, writer):
        writer.write((ASK + b"\r\n") * NUM_ASKED)
        connections = side._server.server_state.connections
        async with asyncio.timeout(SECONDS):
            while not connections:
                await asyncio.sleep(0.01)
            while connections:
                await asyncio.sleep(0.01)


async def test_answers_that_are_taken_late_are_whole() -> None:
    async with http_side() as (reader, writer):
        writer.write((ASK + b"\r\n") * (NUM_ASKED - 1) + ASK + b"Connection: close\r\n\r\n")
        await asyncio.sleep(1)
        received = await asyncio.wait_for(reader.read(), SECONDS)
    assert received.count(b"HTTP/1.1 200 OK") == NUM_ASKED


async def test_a_body_that_takes_longer_than_a_head_may_is_waited_for() -> None:
    async with http_side() as (reader, writer):
        head = (
            b"POST /v1/topk HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n"
        )
        writer.write(head)
        await asyncio.sleep(1)  # twice what a head may take
        writer.write(b"{}")
        # There is no teacher yet, and an empty body is no request: either is an answer.
        assert (await asyncio.wait_for(reader.readline(), SECONDS)).startswith(b"HTTP/1.1 ")
