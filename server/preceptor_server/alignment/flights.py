"""Work that several callers may want at once: done once, one piece at a time, and stopped when nobody wants it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Hashable
from dataclasses import dataclass
from typing import Generic, TypeVar

from preceptor_server.errors import QueueFullError

T = TypeVar("T")

MAX_WAITING = 8
"""Pieces of work that may wait for the one under way."""
_RETRY_AFTER_SECONDS = 2.0


@dataclass(slots=True, eq=False)
class _Flight(Generic[T]):
    task: asyncio.Task[T]
    num_callers: int = 0


class Flights(Generic[T]):
    """Pieces of work under way or waiting, by what they are about."""

    def __init__(self) -> None:
        self._flights: dict[Hashable, _Flight[T]] = {}
        self._turn = asyncio.Semaphore(1)

    async def join(self, key: Hashable, work: Callable[[], Awaitable[T]]) -> T:
        """The result of the work of this key, which begins unless it is under way. Raises QueueFullError."""
        flight = self._flights.get(key)
        if flight is None:
            if len(self._flights) > MAX_WAITING:
                raise QueueFullError(
                    f"{MAX_WAITING} tokenizers wait to be read already: register again in a few seconds",
                    retry_after_seconds=_RETRY_AFTER_SECONDS,
                )
            flight = self._flights[key] = _Flight(asyncio.create_task(self._in_turn(work)))
            flight.task.add_done_callback(_retrieve)
        flight.num_callers += 1
        try:
            return await asyncio.shield(flight.task)
        finally:
            flight.num_callers -= 1
            if not flight.num_callers or flight.task.done():
                flight.task.cancel()
                # At once, so that who comes next does not join what is being stopped.
                if self._flights.get(key) is flight:
                    del self._flights[key]

    async def close(self) -> None:
        """Stops everything, and waits until it has stopped."""
        tasks = [flight.task for flight in self._flights.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _in_turn(self, work: Callable[[], Awaitable[T]]) -> T:
        async with self._turn:
            return await work()


def _retrieve(task: asyncio.Task[T]) -> None:
    """Keeps asyncio from reporting a failure that no caller is left to hear."""
    if not task.cancelled():
        task.exception()
