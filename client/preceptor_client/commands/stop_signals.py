"""SIGINT and SIGTERM as requests to stop, for a program whose main thread trains. Imports no torch."""

from __future__ import annotations

import signal
import sys
import threading
import time
from queue import SimpleQueue
from types import FrameType, TracebackType
from typing import Any, Self

from preceptor_client.train.stop import StopRequest

SIGNALS = (signal.SIGINT, signal.SIGTERM)
SAME_PRESS_SECONDS = 0.5
"""A launcher may pass on the Ctrl-C that the terminal has sent to its child already: so close together they are one."""


class EndedBySignal(KeyboardInterrupt):
    """Raised in the main thread, wherever it is: at the second signal, and where no run heeds the request."""


def is_of_signal(error: BaseException) -> bool:
    """Whether it is EndedBySignal, or what a library made of it: pydantic tells it as a failed serialization."""
    chain: list[BaseException] = []
    seen: BaseException | None = error
    # A library that raises an error anew that it had kept, as TensorBoard does, makes a ring of causes.
    while seen is not None and seen not in chain:
        if isinstance(seen, EndedBySignal):
            return True
        chain.append(seen)
        seen = seen.__cause__ or seen.__context__
    return False


class StopSignals:
    """While entered, the first signal asks the run to stop, and another one ends the program at once.

    A signal that the process was started to ignore stays ignored, as in a script's background. Outside the main thread
    Python has no signals, and this does nothing.
    """

    def __init__(self, stop: StopRequest) -> None:
        self.first: int | None = None
        """The signal that came first."""
        self._first_at = 0.0
        self._stop = stop
        self._previous: dict[signal.Signals, Any] = {}  # Any: what signal.signal returns
        self._received: SimpleQueue[bool] = SimpleQueue()
        self._previous_hook = sys.unraisablehook

    @property
    def exit_status(self) -> int:
        """As shells report it: 130 for SIGINT, 143 for SIGTERM."""
        assert self.first is not None
        return 128 + self.first

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            threading.Thread(target=self._ask_on_receipt, name="stop signals", daemon=True).start()
            for number in SIGNALS:
                if signal.getsignal(number) not in (signal.SIG_IGN, None):
                    self._previous[number] = signal.signal(number, self._receive)
            self._previous_hook, sys.unraisablehook = sys.unraisablehook, self._tell_unraisable
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        if sys.unraisablehook == self._tell_unraisable:
            sys.unraisablehook = self._previous_hook
        self._received.put(False)

    def _tell_unraisable(self, unraisable: Any) -> None:  # Any: its type is the interpreter's own
        """A signal may interrupt code out of which nothing can be raised, such as the end of an object: the request
        stands, and the next boundary ends the run. Python would print a traceback."""
        if unraisable.exc_type is not EndedBySignal:
            self._previous_hook(unraisable)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        # The handler may interrupt code that holds any lock, so that it asks through a queue that allows for it.
        del frame
        is_first = self.first is None
        if is_first:
            self.first, self._first_at = number, time.monotonic()
        elif time.monotonic() - self._first_at < SAME_PRESS_SECONDS:
            return
        self._received.put(True)
        if not (is_first and self._stop.is_heeded):
            raise EndedBySignal

    def _ask_on_receipt(self) -> None:
        while self._received.get():
            self._stop.ask()
