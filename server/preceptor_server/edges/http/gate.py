"""Whose turn it is among HTTP's requests, so that debugging takes a small share of a teacher at work.

While gRPC callers are at work one request is served at a time, and after it so long a pause that HTTP has had no more
than its share. While they are not, as many as the settings say are served at once, and there is no pause.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from preceptor_server.errors import DeadlinePassedError, QueueFullError

_LOOK_AGAIN_SECONDS = 0.5
"""Whether gRPC is still at work is looked up this often while somebody waits."""


@dataclass(slots=True)
class Turn:
    """A request that is being served."""

    busy_seconds: float = 0.0
    """How long the teacher was kept from others; set by whoever is served."""


class Gate:
    """First come, first served, a few at once."""

    def __init__(
        self,
        *,
        max_groups: int,
        max_waiting: int,
        share: float,
        is_contended: Callable[[], bool],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._max_groups = max_groups
        self._max_waiting = max_waiting
        self._share = share
        self._is_contended = is_contended
        self._clock = clock
        self._num_running = 0
        self._not_before = 0.0
        """By the clock: when HTTP may ask again while others are at work."""
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._timer: asyncio.TimerHandle | None = None

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    @asynccontextmanager
    async def turn(self, *, timeout_seconds: float) -> AsyncIterator[Turn]:
        """Waits for a turn. Raises QueueFullError where too many wait, DeadlinePassedError where it takes too long."""
        await self._enter(timeout_seconds)
        turn = Turn()
        try:
            yield turn
        finally:
            self._num_running -= 1
            if self._is_contended():
                pause = turn.busy_seconds * (1 / self._share - 1)
                self._not_before = max(self._clock(), self._not_before) + pause
            self._admit()

    async def _enter(self, timeout_seconds: float) -> None:
        self.refuse_if_hopeless(timeout_seconds)
        if not self._waiting and self._may_enter():
            self._num_running += 1
            return
        future = asyncio.get_running_loop().create_future()
        self._waiting.append(future)
        self._admit()
        try:
            await asyncio.wait_for(future, timeout_seconds)
        except BaseException as error:
            if future.done() and not future.cancelled():
                self._num_running -= 1  # its turn came at the very moment at which it was given up
            elif future in self._waiting:
                self._waiting.remove(future)
            self._admit()
            if isinstance(error, TimeoutError):
                waited = f"the deadline passed after {timeout_seconds:g} s of waiting for a turn"
                raise DeadlinePassedError(waited) from error
            raise

    def refuse_if_hopeless(self, timeout_seconds: float) -> None:
        """Raises QueueFullError where `turn` would: before a body is read that nobody will serve."""
        pause = self._pause_seconds()
        if not self._waiting and self._may_enter():
            return
        if len(self._waiting) < self._max_waiting and pause < timeout_seconds:
            return
        raise QueueFullError(
            f"{len(self._waiting)} requests over HTTP wait already, and the teacher is busy with trainers: "
            "debugging takes a small share of it (http.share, http.max_waiting)",
            retry_after_seconds=max(1.0, pause),
        )

    def _may_enter(self) -> bool:
        if not self._is_contended():
            return self._num_running < self._max_groups
        return self._num_running == 0 and self._pause_seconds() <= 0

    def _pause_seconds(self) -> float:
        return max(0.0, self._not_before - self._clock()) if self._is_contended() else 0.0

    def _admit(self) -> None:
        """Lets in whoever may, and looks again later if others wait."""
        while self._waiting and self._may_enter():
            future = self._waiting.popleft()
            if not future.done():
                self._num_running += 1
                future.set_result(None)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._waiting:
            delay = min(self._pause_seconds() or _LOOK_AGAIN_SECONDS, _LOOK_AGAIN_SECONDS)
            self._timer = asyncio.get_running_loop().call_later(delay, self._admit)
