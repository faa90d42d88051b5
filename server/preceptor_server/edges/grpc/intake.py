"""Takes requests off their connections and decodes them, no more at once than there is memory for, and each in a
bounded time.

What is not taken stays in the caller's and the kernel's buffers: HTTP/2's flow control makes it wait there. A message
that is read and decoded is in memory two or three times, so few large ones may be at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, TypeVar

import grpc

from preceptor_server.edges.grpc.sizes import SMALL_BYTES
from preceptor_server.edges.grpc.trimming import trim_after
from preceptor_server.edges.grpc.turns import Turn, Turns
from preceptor_server.errors import DeadlinePassedError, InvalidRequestError, QueueFullError
from preceptor_server.tenants.tenant import Tenant

Context = grpc.aio.ServicerContext[Any, Any]  # Any: of whatever method
RequestT = TypeVar("RequestT")

_RETRY_SECONDS = 1.0
_MANY = 2**31 - 1
_MAX_TENANTS = 4096
"""Beyond it those of whom nothing is read are forgotten."""


class Intake:
    """A bound on the messages that are being read, on the bytes of those that are decoded, and of those that are
    served.

    A tenant reads at most half of what is read at once, so that one whose messages trickle in never stops the others;
    and of large messages, whose size is known once they are read, no more at once than the largest one has bytes.
    """

    def __init__(self, *, max_message_bytes: int, max_bytes: int, read_seconds: float) -> None:
        self._max_message_bytes = max_message_bytes
        self._max_bytes = max_bytes
        self._read_seconds = read_seconds
        self._num_bytes = 0
        num_slots = max(2, max_bytes // (2 * max_message_bytes))
        self._slots = asyncio.Semaphore(num_slots)
        self._max_of_tenant = max(1, num_slots // 2)
        self._turns_of: dict[str, Turns] = {}
        self._decoding = Turns(max_bytes=max_message_bytes, max_messages=_MANY)

    @property
    def num_bytes(self) -> int:
        """Of the messages that are served."""
        return self._num_bytes

    @property
    def num_bytes_decoded(self) -> int:
        """Of the messages that are being decoded."""
        return self._decoding.num_bytes

    @contextmanager
    def hold(self, num_bytes: int) -> Iterator[None]:
        """Counts a message while the block runs. Raises QueueFullError where the server holds as much as it may."""
        if self._num_bytes + num_bytes > self._max_bytes:
            raise QueueFullError(
                f"requests of {self._num_bytes} bytes are being served, and {num_bytes} more would pass the server's "
                f"listen.max_bytes_in_flight={self._max_bytes}",
                retry_after_seconds=_RETRY_SECONDS,
            )
        self._num_bytes += num_bytes
        try:
            yield
        finally:
            self._num_bytes -= num_bytes

    async def take(
        self,
        context: Context,
        *,
        tenant: Tenant,
        decode: Callable[[bytes], RequestT],
        held: ExitStack,
        arriving: ExitStack,
    ) -> RequestT:
        """The call's message, read and decoded, which counts as served until `held` is closed; where it is large, its
        tenant's next one waits until `arriving` is closed. Raises InvalidRequestError where there is none,
        DeadlinePassedError where it does not come in time, QueueFullError, and what `decode` raises."""
        turn = await self._begin(tenant)
        with ExitStack() as reading:
            reading.callback(turn.end)
            async with self._slots:
                data = await self._read(context)
            num_bytes = len(data)
            turn.resize(num_bytes)
            held.enter_context(self.hold(num_bytes))
            if num_bytes <= SMALL_BYTES:
                return decode(data)
            arriving.push(reading.pop_all())
        decoding = await self._decoding.begin(num_bytes)
        taken = [data]
        del data
        # No frame of this error may hold its future: they would be kept until Python looks for cycles.
        return await asyncio.shield(_in_a_thread(lambda: decode(taken.pop()), decoding))

    async def _begin(self, tenant: Tenant) -> Turn:
        """The tenant's turn to read."""
        turns = self._turns_of.get(tenant.name)
        if turns is None:
            if len(self._turns_of) >= _MAX_TENANTS:
                self._turns_of = {name: one for name, one in self._turns_of.items() if not one.is_idle}
            turns = Turns(max_bytes=self._max_message_bytes, max_messages=self._max_of_tenant)
            self._turns_of[tenant.name] = turns
        return await turns.begin()

    async def _read(self, context: Context) -> bytes:
        try:
            async with asyncio.timeout(self._read_seconds):
                data = await context.read()
        except TimeoutError:
            raise DeadlinePassedError(
                f"the message did not come within listen.read_seconds={self._read_seconds:g}"
            ) from None
        if not isinstance(data, bytes):  # grpc.aio.EOF
            raise InvalidRequestError("request", "the call has no message", reason="MALFORMED_MESSAGE")
        return data


def _in_a_thread(decode: Callable[[], RequestT], turn: Turn) -> asyncio.Future[RequestT]:
    """A thread goes on when its caller is gone: the turn ends with it."""

    def work() -> RequestT:
        try:
            return decode()
        finally:
            trim_after(turn.num_bytes)

    def end(decoding: asyncio.Future[RequestT]) -> None:
        turn.end()
        if not decoding.cancelled():
            decoding.exception()  # keeps asyncio from reporting what no caller is left to hear

    future = asyncio.get_running_loop().run_in_executor(None, work)
    future.add_done_callback(end)
    return future
