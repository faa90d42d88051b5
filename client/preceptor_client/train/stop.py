"""Carries the request that a run ends early. Knows neither signals nor how a run is saved. Imports no torch."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from preceptor_client.train.errors import StopRequestedError

if TYPE_CHECKING:
    from torch import nn

ResultT = TypeVar("ResultT")


class StopRequest:
    """Asks a run to save itself at its next boundary and to end. May be asked from any thread, any number of times.

    A boundary is where weights, optimizer and step number agree. What only reads the weights (rollouts, waiting for
    the teacher, measuring) is given up on the way there; an update that has begun is finished.
    """

    def __init__(self) -> None:
        self._asked: Future[None] = Future()
        self._lock = threading.Lock()
        self.is_heeded = False
        """Whether a run looks at it: before the first step and after the last there is nothing to save."""

    @property
    def is_asked(self) -> bool:
        return self._asked.done()

    def ask(self) -> None:
        """Returns at once. Not for signal handlers while `is_heeded`: they may interrupt who holds the lock."""
        with self._lock:
            if not self._asked.done():
                self._asked.set_result(None)

    def on_ask(self, callback: Callable[[], None]) -> None:
        """Calls back once, in the thread that asks, or now where that has happened."""
        self._asked.add_done_callback(lambda _: callback())

    def check(self) -> None:
        """Raises StopRequestedError once it was asked."""
        if self.is_asked:
            raise StopRequestedError("the run was asked to stop")

    def result_of(self, future: Future[ResultT], *, timeout_seconds: float | None = None) -> ResultT:
        """Waits for the future, or for the request, which raises StopRequestedError. Raises TimeoutError as
        `Future.result` does."""
        self.wait([future], timeout_seconds=timeout_seconds)
        return future.result(timeout=0)

    def wait(self, futures: Iterable[Future[Any]], *, timeout_seconds: float | None = None) -> None:
        """Waits until the first of the futures is done or the time is over, or for the request, which raises
        StopRequestedError."""
        wait((*futures, self._asked), timeout=timeout_seconds, return_when=FIRST_COMPLETED)
        self.check()

    @contextmanager
    def heeded(self) -> Iterator[None]:
        """While the block lasts, the run looks at it."""
        self.is_heeded = True
        try:
            yield
        finally:
            self.is_heeded = False

    @contextmanager
    def checked_by(self, module: nn.Module) -> Iterator[None]:
        """While the block lasts, each forward of the module checks first: a long generation ends at its next token."""
        hook = module.register_forward_pre_hook(lambda *_: self.check())
        try:
            yield
        finally:
            hook.remove()
