"""Takes requests off their connections, no more at once than there is memory for, and each in a bounded time.

What is not taken stays in the caller's and the kernel's buffers: HTTP/2's flow control makes it wait there.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import grpc

from preceptor_server.edges.reading import ReadingSlots
from preceptor_server.errors import DeadlinePassedError, InvalidRequestError, QueueFullError
from preceptor_server.tenants.tenant import Tenant

Context = grpc.aio.ServicerContext[Any, Any]  # Any: of whatever method

_RETRY_SECONDS = 1.0


class Intake:
    """A bound on the messages that are being read, and on the bytes of those that are served."""

    def __init__(self, *, max_message_bytes: int, max_bytes: int, read_seconds: float) -> None:
        self._max_bytes = max_bytes
        self._read_seconds = read_seconds
        self._num_bytes = 0
        self._slots = ReadingSlots(max_bytes // (2 * max_message_bytes))

    @property
    def num_bytes(self) -> int:
        """Of the messages that are served."""
        return self._num_bytes

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

    async def read(self, context: Context, *, tenant: Tenant) -> bytes:
        """The call's message. Raises InvalidRequestError where there is none, and DeadlinePassedError where it does not
        come in time."""
        async with self._slots.slot(tenant):
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
