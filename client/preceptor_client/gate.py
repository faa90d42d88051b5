"""Bounds what is in flight at once, in calls and in bytes; the rest waits, first come, first served. Makes no calls."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Gate:
    """Belongs to the event loop that first waits at it."""

    def __init__(self, *, max_calls: int, max_bytes: int) -> None:
        self.max_calls = max_calls
        self.max_bytes = max_bytes
        self.num_calls = 0
        """Inside."""
        self.num_bytes = 0
        self._waiting: deque[tuple[asyncio.Future[None], int]] = deque()

    @asynccontextmanager
    async def slot(self, num_bytes: int = 0) -> AsyncIterator[None]:
        """Waits for room, and occupies it for the length of the block. A call larger than `max_bytes` goes alone."""
        await self._enter(num_bytes)
        try:
            yield
        finally:
            self._leave(num_bytes)

    async def _enter(self, num_bytes: int) -> None:
        if not self._waiting and self._has_room(num_bytes):
            self._occupy(num_bytes)
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((turn, num_bytes))
        try:
            await turn
        except asyncio.CancelledError:
            if turn.cancelled():
                # It may have stood in front of smaller ones.
                self._admit()
            else:
                self._leave(num_bytes)
            raise

    def _leave(self, num_bytes: int) -> None:
        self.num_calls -= 1
        self.num_bytes -= num_bytes
        self._admit()

    def _admit(self) -> None:
        while self._waiting:
            turn, num_bytes = self._waiting[0]
            if not turn.cancelled():
                if not self._has_room(num_bytes):
                    return
                self._occupy(num_bytes)
                turn.set_result(None)
            self._waiting.popleft()

    def _has_room(self, num_bytes: int) -> bool:
        if not self.num_calls:
            return True
        return self.num_calls < self.max_calls and self.num_bytes + num_bytes <= self.max_bytes

    def _occupy(self, num_bytes: int) -> None:
        self.num_calls += 1
        self.num_bytes += num_bytes
