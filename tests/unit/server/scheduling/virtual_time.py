"""An event loop whose clock jumps to the next timer whenever nothing else is to be done: hours pass in a moment."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any, TypeVar

ResultT = TypeVar("ResultT")


class _Selector(selectors.DefaultSelector):  # type: ignore[misc, valid-type]  # another class on each platform
    """Does not wait: it tells the loop how long it would have."""

    loop: VirtualTimeLoop

    def select(self, timeout: float | None = None) -> Any:  # Any: as in the base class
        assert timeout is not None, "everybody waits for something that nobody will do"
        self.loop.advance(timeout)
        return super().select(0)


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """Starts at 0. Threads are not waited for."""

    def __init__(self) -> None:
        selector = _Selector()
        super().__init__(selector)
        selector.loop = self
        self._now = 0.0

    def time(self) -> float:
        return self._now

    def advance(self, seconds: float) -> None:
        self._now += max(0.0, seconds)


def run(main: Coroutine[Any, Any, ResultT]) -> ResultT:
    """As `asyncio.run`, in virtual time."""
    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        return runner.run(main)
