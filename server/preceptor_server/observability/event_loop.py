"""Watches the event loop from other threads: how late it is, and values that only it may read.

A scrape asks the loop for the state of queues, and goes by what it learned last where the loop does not answer in time.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import time
from collections.abc import Callable
from typing import TypeVar

from preceptor_server.observability.families import Distribution

T = TypeVar("T")

_TICK_SECONDS = 0.5


class LoopWatch:
    """Made and started in the loop; read from any thread."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        *,
        delays: Distribution | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`delays` is told of each tick how late it came."""
        self._loop = loop
        self._delays = delays
        self._clock = clock
        self._due = clock()
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        self._due = self._clock() + _TICK_SECONDS
        self._timer = self._loop.call_later(_TICK_SECONDS, self._tick)

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    @property
    def delay_seconds(self) -> float:
        """How late the loop is at this moment; 0 while it is not watched."""
        return max(0.0, self._clock() - self._due) if self._timer is not None else 0.0

    def ask(self, read: Callable[[], T], *, patience_seconds: float) -> T | None:
        """What `read` returns, run in the loop; None where the loop did not come to it in time, or has ended."""
        if _running_loop() is self._loop:
            return read()
        if self.delay_seconds > patience_seconds:  # it is stuck, and waiting would only hold up the next who asks
            return None
        answer: concurrent.futures.Future[T] = concurrent.futures.Future()
        try:
            self._loop.call_soon_threadsafe(_answer, answer, read)
        except RuntimeError:  # the loop has ended
            return None
        try:
            return answer.result(patience_seconds)
        except TimeoutError:
            answer.cancel()
            return None

    def _tick(self) -> None:
        if self._delays is not None:
            self._delays.observe(max(0.0, self._clock() - self._due))
        self.start()


def _answer(answer: concurrent.futures.Future[T], read: Callable[[], T]) -> None:
    if not answer.set_running_or_notify_cancel():
        return
    try:
        answer.set_result(read())
    except Exception as error:  # noqa: BLE001  whoever asked is told
        answer.set_exception(error)


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None
