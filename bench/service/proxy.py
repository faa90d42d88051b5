"""A TCP proxy that misbehaves: delays, stalls, cuts and swallows. Knows nothing of what flows through it.

It also gives each tenant an address of its own: it connects to the server from `source`, any address of 127.0.0.0/8.
"""

from __future__ import annotations

import asyncio
import random
import socket
import struct
import threading
from collections.abc import Coroutine
from types import TracebackType
from typing import Any, Self

CHUNK_BYTES = 1 << 16
RETRANSMISSION_SECONDS = 0.2
"""How long a lost segment holds up what is behind it, beside the round trip: Linux's smallest timeout."""


class Proxy:
    """Listens on loopback for the length of a `with` block, in a thread of its own."""

    def __init__(self, target: str, *, source: str | None = None, seed: int = 0) -> None:
        host, _, port = target.rpartition(":")
        self._target = (host.strip("[]"), int(port))
        self._source = source
        self._random = random.Random(seed)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._open: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._passing: asyncio.Event | None = None
        self.delay_seconds = 0.0
        """One way; what is behind waits no longer than it would by itself."""
        self.loss = 0.0
        """Share of the chunks that stall their direction, as a segment does that TCP must send again."""
        self.num_connections = 0
        self.num_cut = 0
        self.address = ""

    def retarget(self, target: str) -> None:
        """Of connections to come."""
        host, _, port = target.rpartition(":")
        self._target = (host.strip("[]"), int(port))

    def cut(self) -> int:
        """Resets all connections; returns how many."""
        count: int = self._here(self._cut())
        return count

    def swallow(self, *, is_on: bool) -> None:
        """A black hole: nothing arrives, nothing is refused, while it is on."""
        self._here(self._swallow(is_on=is_on))

    def __enter__(self) -> Self:
        self._thread.start()
        self.address = self._here(self._listen())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._here(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _here(self, work: Coroutine[Any, Any, Any]) -> Any:  # Any: whatever the work gives
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(30)

    async def _listen(self) -> str:
        self._passing = asyncio.Event()
        self._passing.set()
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0, backlog=1024)
        return f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def _close(self) -> None:
        self._server.close()
        await self._swallow(is_on=False)
        await self._cut()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _cut(self) -> int:
        count = len(self._open)
        for writer in list(self._open):
            _reset(writer)
        self.num_cut += count
        return count

    async def _swallow(self, *, is_on: bool) -> None:
        assert self._passing is not None
        if is_on:
            self._passing.clear()
        else:
            self._passing.set()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._open.add(writer)
        try:
            await self._join(reader, writer)
        except OSError:
            _reset(writer)  # the server is away: so is the proxy
        except asyncio.CancelledError:
            pass  # the proxy ends; asyncio would tell of it
        finally:
            self._open.discard(writer)
            self._tasks.discard(task)

    async def _join(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        local = None if self._source is None else (self._source, 0)
        onward_reader, onward_writer = await asyncio.open_connection(*self._target, local_addr=local)
        self.num_connections += 1
        self._open.add(onward_writer)
        try:
            await asyncio.gather(self._pump(reader, onward_writer), self._pump(onward_reader, writer))
        finally:
            self._open.discard(onward_writer)

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Reads ahead of what it has delayed, so that a delay costs no bandwidth. Ends both ways with either."""
        line: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(maxsize=256)
        sending = asyncio.create_task(self._send(line, writer))
        try:
            while chunk := await reader.read(CHUNK_BYTES):
                await line.put((self._loop.time() + self.delay_seconds, chunk))
            await line.put((self._loop.time() + self.delay_seconds, b""))
            await sending
        except OSError:
            pass  # cut, by either side or by us: that ends the connection
        finally:
            sending.cancel()
            writer.transport.abort() if writer.transport.is_closing() else writer.close()

    async def _send(self, line: asyncio.Queue[tuple[float, bytes]], writer: asyncio.StreamWriter) -> None:
        assert self._passing is not None
        while True:
            due, chunk = await line.get()
            await asyncio.sleep(max(0.0, due - self._loop.time()))
            if self.loss and self._random.random() < self.loss:
                await asyncio.sleep(2 * self.delay_seconds + RETRANSMISSION_SECONDS)
            await self._passing.wait()
            if not chunk:
                return
            writer.write(chunk)
            await writer.drain()


def _reset(writer: asyncio.StreamWriter) -> None:
    """Ends a connection by RST, as a machine does that has lost it."""
    connection = writer.get_extra_info("socket")
    if connection is not None and connection.fileno() >= 0:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
