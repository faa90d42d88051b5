"""Writes the same event at most once a second, and how many were left out: for what callers can cause in a loop."""

from __future__ import annotations

import logging
import re
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable
from threading import Lock

SECONDS = 1.0
_MAX_EVENTS = 256
"""Events told apart at once; the one met least recently makes room."""
_KIND_CHARACTERS = 48
_NUMBERS = re.compile(r"\d+")

ExcInfo = bool | BaseException
"""Whose traceback is written: True = that of the error at hand."""


class Throttle:
    """Says whether an event may be told. Any thread may ask."""

    def __init__(self, *, seconds: float = SECONDS, clock: Callable[[], float] = time.monotonic) -> None:
        self._seconds = seconds
        self._clock = clock
        self._lock = Lock()
        self._told: OrderedDict[Hashable, tuple[float, int]] = OrderedDict()
        """When it was told last, and how often not since."""

    def ask(self, event: Hashable) -> int | None:
        """How many of its kind were left out since the last one told; None: leave this one out too."""
        now = self._clock()
        with self._lock:
            told = self._told.get(event)
            if told is not None and now - told[0] < self._seconds:
                self._told[event] = (told[0], told[1] + 1)
                self._told.move_to_end(event)
                return None
            self._told[event] = (now, 0)
            self._told.move_to_end(event)
            if len(self._told) > _MAX_EVENTS:
                self._told.popitem(last=False)
        return 0 if told is None else told[1]


class RateLimited:
    """A logger of events that may come in thousands. Events are told apart by the text before its arguments are put in,
    or by `event`."""

    def __init__(self, logger: logging.Logger, *, throttle: Throttle | None = None) -> None:
        self._logger = logger
        self._throttle = throttle or Throttle()

    def debug(self, text: str, *args: object, event: Hashable = None, exc_info: ExcInfo = False) -> None:
        self._log(logging.DEBUG, text, args, event, exc_info)

    def info(self, text: str, *args: object, event: Hashable = None, exc_info: ExcInfo = False) -> None:
        self._log(logging.INFO, text, args, event, exc_info)

    def warning(self, text: str, *args: object, event: Hashable = None, exc_info: ExcInfo = False) -> None:
        self._log(logging.WARNING, text, args, event, exc_info)

    def error(self, text: str, *args: object, event: Hashable = None, exc_info: ExcInfo = False) -> None:
        self._log(logging.ERROR, text, args, event, exc_info)

    def _log(self, level: int, text: str, args: tuple[object, ...], event: Hashable, exc_info: ExcInfo) -> None:
        if not self._logger.isEnabledFor(level):
            return
        num_suppressed = self._throttle.ask(text if event is None else event)
        if num_suppressed is None:
            return
        if num_suppressed:
            text, args = f"{text} suppressed=%d", (*args, num_suppressed)
        self._logger.log(level, text, *args, exc_info=exc_info, stacklevel=3)


class RateLimitFilter(logging.Filter):
    """For a handler: the same for loggers of libraries, which write a line, or a traceback, for each message or
    connection that goes wrong."""

    def __init__(self, loggers: tuple[str, ...], *, throttle: Throttle | None = None) -> None:
        super().__init__()
        self._loggers = loggers
        self._prefixes = tuple(f"{name}." for name in loggers)
        self._throttle = throttle or Throttle()

    def filter(self, record: logging.LogRecord) -> bool:
        if record.name not in self._loggers and not record.name.startswith(self._prefixes):
            return True
        num_suppressed = self._throttle.ask((record.name, record.levelno, record.lineno, _kind(record)))
        if num_suppressed:
            record.msg = f"{record.msg} suppressed={num_suppressed}"
        return num_suppressed is not None


def _kind(record: logging.LogRecord) -> str:
    """The beginning of its text, without numbers: libraries put peers and sizes into it."""
    return _NUMBERS.sub("", str(record.msg)[:_KIND_CHARACTERS])
