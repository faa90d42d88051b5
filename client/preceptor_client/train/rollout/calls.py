"""Calls foreign code, many calls at once, each in a daemon thread with an event loop of its own, within a deadline.

A call that blocks, hangs or raises costs itself alone. Knows nothing of what is called.
"""

from __future__ import annotations

import asyncio
import inspect
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Future
from typing import Generic, TypeVar

from preceptor_client.train.stop import StopRequest

ResultT = TypeVar("ResultT")

Call = Callable[[], ResultT | Awaitable[ResultT]]


def call_all(
    calls: Sequence[Call[ResultT]], *, timeout_seconds: float, max_concurrency: int, stop: StopRequest
) -> list[ResultT | BaseException]:
    """What each call returned, or what it raised: TimeoutError after `timeout_seconds`, which count from its own start.
    A call that is late is abandoned with its thread. Raises StopRequestedError when the run is asked to stop."""
    results: dict[int, ResultT | BaseException] = {}
    waiting, running = deque(enumerate(calls)), dict[Future[ResultT], _Running[ResultT]]()
    while waiting or running:
        while waiting and len(running) < max_concurrency:
            place, call = waiting.popleft()
            started = _Running(place, call, timeout_seconds=timeout_seconds)
            running[started.future] = started
        first_deadline = min(one.deadline for one in running.values())
        stop.wait(running, timeout_seconds=max(0.0, first_deadline - time.monotonic()))
        now = time.monotonic()
        for future, one in list(running.items()):
            if future.done() or one.deadline <= now:
                results[one.place] = one.outcome()
                del running[future]
    return [results[place] for place in range(len(calls))]


class _Running(Generic[ResultT]):
    """One call that has begun."""

    def __init__(self, place: int, call: Call[ResultT], *, timeout_seconds: float) -> None:
        self.place = place
        self.deadline = time.monotonic() + timeout_seconds
        self.future: Future[ResultT] = Future()
        self._call = call
        self._timeout_seconds = timeout_seconds
        threading.Thread(target=self._work, name=f"preceptor call {place}", daemon=True).start()

    def outcome(self) -> ResultT | BaseException:
        if not self.future.done():
            return TimeoutError(f"no answer in {self._timeout_seconds:g} s")
        error = self.future.exception()
        return self.future.result() if error is None else error

    def _work(self) -> None:
        try:
            called = self._call()
            result = asyncio.run(self._awaited(called)) if inspect.isawaitable(called) else called
        except BaseException as error:  # noqa: BLE001  foreign code: also SystemExit is told to who waits, not lost
            self.future.set_exception(error)
        else:
            self.future.set_result(result)

    async def _awaited(self, called: Awaitable[ResultT]) -> ResultT:
        """Cancelled at the deadline, so that what can be ended is."""
        async with asyncio.timeout(self._timeout_seconds):
            return await called
