"""Whose message may be read or decoded now: bounded in number and in bytes, first come, first served."""

from __future__ import annotations

import asyncio
from collections import deque


class Turn:
    """A message that is under way, until `end`."""

    def __init__(self, turns: Turns, num_bytes: int) -> None:
        self._turns = turns
        self.num_bytes = num_bytes
        """As many as it is counted for."""

    def resize(self, num_bytes: int) -> None:
        """The message turns out to have so many."""
        self._turns.resized(self, num_bytes)

    def end(self) -> None:
        """Once."""
        self._turns.ended(self)


class Turns:
    """Messages under way have no more than `max_bytes` in all, or there is one alone.

    How large a message is may be known only once it has been read. Until then it counts as one of `max_bytes`, where it
    is the first; later as the one before it, or half of what that one counted as, whichever is larger.
    """

    def __init__(self, *, max_bytes: int, max_messages: int) -> None:
        self._max_bytes = max_bytes
        self._max_messages = max_messages
        self._expected_bytes: int | None = None
        """Of the next message; None before the first."""
        self._num_bytes = 0
        self._num_messages = 0
        self._waiting: deque[tuple[int | None, asyncio.Future[Turn]]] = deque()

    @property
    def num_bytes(self) -> int:
        """Of the messages under way."""
        return self._num_bytes

    @property
    def is_idle(self) -> bool:
        """Nothing is under way, and nobody waits."""
        return not self._num_messages and not self._waiting

    async def begin(self, num_bytes: int | None = None) -> Turn:
        """Waits for a turn. `num_bytes`: of the message; None where that is not known yet."""
        future: asyncio.Future[Turn] = asyncio.get_running_loop().create_future()
        self._waiting.append((num_bytes, future))
        self._begin_what_may()
        try:
            return await future
        except asyncio.CancelledError:
            if future.done() and not future.cancelled():
                future.result().end()  # its turn came at the very moment at which it was given up
            else:
                self._waiting.remove((num_bytes, future))
                self._begin_what_may()
            raise

    def resized(self, turn: Turn, num_bytes: int) -> None:
        self._expected_bytes = max(num_bytes, (self._expected_bytes or 0) // 2)
        self._num_bytes += num_bytes - turn.num_bytes
        turn.num_bytes = num_bytes
        self._begin_what_may()

    def ended(self, turn: Turn) -> None:
        self._num_bytes -= turn.num_bytes
        self._num_messages -= 1
        self._begin_what_may()

    def _begin_what_may(self) -> None:
        while self._waiting and self._num_messages < self._max_messages:
            known, future = self._waiting[0]
            expected = self._max_bytes if self._expected_bytes is None else self._expected_bytes
            num_bytes = expected if known is None else known
            if self._num_messages and self._num_bytes + num_bytes > self._max_bytes:
                return
            self._waiting.popleft()
            if not future.cancelled():
                self._num_bytes += num_bytes
                self._num_messages += 1
                future.set_result(Turn(self, num_bytes))
