"""Servers with TLS that answer with one word, over gRPC and over HTTP by uvicorn, and how a client asks them."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import httpx
import uvicorn
from preceptor_server.tenants.certificates import ServerCertificates
from preceptor_server.tenants.tls import grpc_credentials, ssl_context

from tests.certificates import Issued

WORD = b"heard"
REFUSED = "refused"

Ask = Callable[..., Awaitable[bytes | str]]


async def _answer(request: bytes, context: grpc.aio.ServicerContext[bytes, bytes]) -> bytes:
    return WORD


@asynccontextmanager
async def grpc_server(certificates: ServerCertificates) -> AsyncIterator[int]:
    """The port."""
    handler = grpc.method_handlers_generic_handler("t.T", {"M": grpc.unary_unary_rpc_method_handler(_answer)})
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((handler,))
    port = server.add_secure_port("127.0.0.1:0", grpc_credentials(certificates))
    await server.start()
    try:
        yield port
    finally:
        await server.stop(0)


def grpc_channel(port: int, *, ca: Path | None, cert: Issued | None = None) -> grpc.aio.Channel:
    """With a connection of its own. Without a CA it speaks no TLS."""
    address, options = f"localhost:{port}", [("grpc.use_local_subchannel_pool", 1)]
    if ca is None:
        return grpc.aio.insecure_channel(address, options=options)
    key, chain = cert.pair() if cert else (None, None)
    credentials = grpc.ssl_channel_credentials(ca.read_bytes(), key, chain)
    return grpc.aio.secure_channel(address, credentials, options=options)


async def call(channel: grpc.aio.Channel) -> bytes | str:
    """The word, or REFUSED where there is no connection."""
    method: Any = channel.unary_unary("/t.T/M")  # Any: the stubs know no call without serializers
    try:
        answer: bytes = await method(b"", timeout=20)
    except grpc.aio.AioRpcError as error:
        if error.code() is not grpc.StatusCode.UNAVAILABLE:
            raise
        return REFUSED
    return answer


async def ask_grpc(port: int, *, ca: Path | None, cert: Issued | None = None) -> bytes | str:
    async with grpc_channel(port, ca=ca, cert=cert) as channel:
        return await call(channel)


async def _app(scope: Any, receive: Any, send: Any) -> None:  # Any: ASGI's own types
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": WORD})


class _Server(uvicorn.Server):
    """Leaves signals alone."""

    @property
    def is_started(self) -> bool:
        return self.started

    async def serve_on(self, bound: socket.socket) -> None:
        await self._serve(sockets=[bound])


@asynccontextmanager
async def http_server(certificates: ServerCertificates) -> AsyncIterator[int]:
    """The port."""
    config = uvicorn.Config(_app, lifespan="off", log_config=None, ws="none", http="h11")
    config.load()
    config.ssl = ssl_context(certificates)
    bound = socket.create_server(("127.0.0.1", 0))
    server = _Server(config)
    serving = asyncio.get_running_loop().create_task(server.serve_on(bound))
    try:
        while not server.is_started:
            await asyncio.sleep(0.005)
        yield bound.getsockname()[1]
    finally:
        server.should_exit = True
        await serving
        bound.close()


def http_client(port: int, *, ca: Path | None, cert: Issued | None = None) -> httpx.AsyncClient:
    if ca is None:
        return httpx.AsyncClient(base_url=f"http://localhost:{port}", timeout=20)
    context = ssl.create_default_context(cafile=ca)
    if cert:
        context.load_cert_chain(cert.certificate, cert.key)
    return httpx.AsyncClient(base_url=f"https://localhost:{port}", verify=context, timeout=20)


async def ask_http(port: int, *, ca: Path | None, cert: Issued | None = None) -> bytes | str:
    async with http_client(port, ca=ca, cert=cert) as client:
        try:
            return (await client.get("/")).content
        except httpx.TransportError:
            return REFUSED
