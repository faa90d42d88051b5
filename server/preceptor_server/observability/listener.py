"""Answers GET /metrics, /healthz and /readyz from a thread and an event loop of its own, so that a busy server can be
looked at. Knows no metric.

It takes few connections at once, each for one request and for seconds. Where all are taken, the oldest of those that
have not sent a whole request yet makes room: a client that sends slowly, or nothing, keeps nobody else out.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import threading
from collections import OrderedDict
from collections.abc import Callable
from functools import partial

from preceptor_server.bind_address import joined
from preceptor_server.errors import StartupError
from preceptor_server.observability.pages import Page, answer_to, bad_request
from preceptor_server.observability.rate_limited import RateLimited

logger = RateLimited(logging.getLogger(__name__))

_MAX_CONNECTIONS = 32
_MAX_HEAD_BYTES = 8192
_READ_SECONDS = 5.0
_WRITE_SECONDS = 10.0
_BREATH_SECONDS = 1.0
"""How long it takes no connections after the system refused one: there are no file descriptors left."""

Answer = Callable[[str], Page | None]
"""From a path; None where there is nothing. Called in the listener's thread."""


class Listener:
    """Binds when it is made, answers between `start` and `stop`."""

    def __init__(
        self,
        answer: Answer,
        *,
        host: str,
        port: int,
        max_connections: int = _MAX_CONNECTIONS,
        read_seconds: float = _READ_SECONDS,
        write_seconds: float = _WRITE_SECONDS,
    ) -> None:
        """Raises StartupError where the port is in use."""
        self._answer = answer
        self._host = host
        self._max_connections = max_connections
        self._read_seconds, self._write_seconds = read_seconds, write_seconds
        self._socket = _bind(host, port)
        self._reading: OrderedDict[asyncio.Task[None], None] = OrderedDict()
        """Connections whose request is not whole yet, the oldest first."""
        self._open: set[asyncio.Task[None]] = set()
        self._loop = asyncio.new_event_loop()
        self._stop = asyncio.Event()
        self._thread = threading.Thread(target=self._run, name="observe", daemon=True)

    @property
    def address(self) -> str:
        """host:port, with the port that the kernel gave."""
        return joined(self._host, self._socket.getsockname()[1])

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Breaks off what is open. Stopping twice is fine."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._stop.set)
            self._thread.join()
        self._socket.close()
        if not self._loop.is_running():
            self._loop.close()

    def _run(self) -> None:
        self._loop.run_until_complete(self._serve())

    async def _serve(self) -> None:
        accepting = asyncio.create_task(self._accept())
        await self._stop.wait()
        for task in (accepting, *self._open):
            task.cancel()
        await asyncio.gather(accepting, *self._open, return_exceptions=True)

    async def _accept(self) -> None:
        while True:
            try:
                connection, _ = await self._loop.sock_accept(self._socket)
            except OSError as error:
                logger.warning("observe cannot take a connection: %s", error)
                await asyncio.sleep(_BREATH_SECONDS)
                continue
            connection.setblocking(False)
            task = self._loop.create_task(self._talk(connection))
            self._open.add(task)
            self._reading[task] = None
            task.add_done_callback(partial(self._left, connection))
            await asyncio.sleep(0)  # whoever has sent its request already gets its answer here
            if len(self._open) > self._max_connections and self._reading:
                oldest, _ = self._reading.popitem(last=False)
                oldest.cancel()

    def _left(self, connection: socket.socket, task: asyncio.Task[None]) -> None:
        connection.close()  # here, for a task that is cancelled before its first step never runs
        self._open.discard(task)
        self._reading.pop(task, None)
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("observe failed to answer: %s: %s", type(error).__name__, error)

    async def _talk(self, connection: socket.socket) -> None:
        try:
            async with asyncio.timeout(self._read_seconds):
                head = await self._read_head(connection)
            task = asyncio.current_task()
            assert task is not None
            self._reading.pop(task, None)
            async with asyncio.timeout(self._write_seconds):
                await self._loop.sock_sendall(connection, self._answer_bytes(head))
        except (TimeoutError, OSError):  # slow, or gone: nobody waits for an answer
            return

    async def _read_head(self, connection: socket.socket) -> bytes:
        head = b""
        while b"\r\n\r\n" not in head:
            if len(head) > _MAX_HEAD_BYTES:
                return b""
            received = await self._loop.sock_recv(connection, _MAX_HEAD_BYTES)
            if not received:
                raise ConnectionResetError("it closed before its request was whole")
            head += received
        return head

    def _answer_bytes(self, head: bytes) -> bytes:
        if not head:
            return bad_request("the head of the request is too large").to_bytes()
        return answer_to(head, self._answer, bound_host=self._host)


def _bind(host: str, port: int) -> socket.socket:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        bound = socket.socket(family, kind, protocol)
        try:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            bound.bind(address)
            bound.listen(_MAX_CONNECTIONS)
        except OSError:
            bound.close()
            raise
    except OSError as error:
        raise StartupError(
            f"observe: cannot bind to {joined(host, port)} ({error}): is the port in use? Set observe.port to another, "
            "or to 0"
        ) from error
    bound.setblocking(False)
    return bound
