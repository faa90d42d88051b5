"""Lets teachers of one process take turns on the machine, by weight. Knows no queues and no models."""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

_GRACE_SECONDS = 0.005
"""How long the turn is kept for a teacher whose forward has ended and who has had less than all who wait: its scheduler
needs a moment to form the next batch."""


class DeviceTurns:
    """Start-time fair queueing between teachers: one forward at a time, of the one that had least for its weight.

    One that comes back from idleness starts level with the others.
    """

    def __init__(self) -> None:
        self._tags: dict[str, float] = {}
        """By teacher: the virtual time at which its next forward starts."""
        self._now = 0.0
        """The virtual time of the forward that began last."""
        self._is_taken = False
        self._kept_for = ""
        self._timer: asyncio.TimerHandle | None = None
        self._waiting: list[tuple[float, int, asyncio.Future[None]]] = []
        self._order = itertools.count()

    @asynccontextmanager
    async def turn(self, teacher: str, *, weight: float, cost: float) -> AsyncIterator[None]:
        """Waits for the turn of a forward that costs so many tokens, and has it while the block runs."""
        tag = max(self._now, self._tags.get(teacher, 0.0))
        self._tags[teacher] = tag + cost / weight
        if self._timer is not None and self._kept_for == teacher:
            self._timer.cancel()
            self._timer = None
        elif self._is_taken:
            try:
                await self._wait(tag)
            except asyncio.CancelledError:
                self._tags[teacher] -= cost / weight
                raise
        self._is_taken = True
        self._now = max(self._now, tag)
        try:
            yield
        finally:
            self._end(teacher)

    async def _wait(self, tag: float) -> None:
        future = asyncio.get_running_loop().create_future()
        heapq.heappush(self._waiting, (tag, next(self._order), future))
        try:
            await future
        except asyncio.CancelledError:
            if future.done() and not future.cancelled():
                self._pass_on()  # its turn came at the very moment at which it was given up
            raise

    def _end(self, teacher: str) -> None:
        if self._waiting and self._tags[teacher] < self._waiting[0][0]:
            self._kept_for = teacher
            self._timer = asyncio.get_running_loop().call_later(_GRACE_SECONDS, self._pass_on)
        else:
            self._pass_on()

    def _pass_on(self) -> None:
        """The turn goes to the next that still waits; taken on its behalf, so that nobody slips in between."""
        self._timer = None
        while self._waiting:
            _, _, future = heapq.heappop(self._waiting)
            if not future.done():
                future.set_result(None)
                return
        self._is_taken = False
