"""Values that are read from files, and read again when the files change, in a thread of their own. Knows no format."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Generic, Protocol, TypeVar

from preceptor_server.errors import StartupError

logger = logging.getLogger(__name__)

T = TypeVar("T")

_SETTLED_SECONDS = 2.0
"""A file younger than this may change again without a newer time stamp, so that it is read again."""

Stamp = tuple[tuple[str, int, int, int, int], ...]


class Reloadable(Protocol):
    """Whatever is looked after by a Reloader."""

    def refresh(self) -> None:
        """Takes what changed. Blocks, and is called from another thread than the event loop's."""


class ReloadedFiles(Generic[T]):
    """The value that is read from files. Files that cannot be used leave the value as it was."""

    def __init__(
        self,
        what: str,
        *,
        load: Callable[[], T],
        paths: Callable[[], Sequence[Path]],
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        """Reads. Raises what `load` raises, which is StartupError for files that cannot be used."""
        self._what = what
        self._load = load
        self._paths = paths
        self._wall_clock = wall_clock
        self._stamp = self._look()
        self._value = load()
        self._failure: str | None = None
        self._num_reloads = 0
        self._num_failures = 0

    @property
    def value(self) -> T:
        return self._value

    @property
    def num_reloads(self) -> int:
        """How often files became another value."""
        return self._num_reloads

    @property
    def num_failures(self) -> int:
        """How often files became something that cannot be used."""
        return self._num_failures

    def refresh(self) -> None:
        """Reads again where the files changed, or could not be used the last time."""
        stamp = self._look()  # before reading: what changes meanwhile is seen the next time
        if stamp is not None and stamp == self._stamp and self._failure is None:
            return
        try:
            value = self._load()
        except StartupError as error:
            self._fail(str(error))
            return
        self._stamp = stamp
        self._failure = None
        if value != self._value:
            self._value = value
            self._num_reloads += 1
            logger.info("reloaded %s", self._what)

    def _fail(self, message: str) -> None:
        if message == self._failure:
            return
        self._failure = message
        self._num_failures += 1
        logger.error("%s changed and cannot be used; what was read before stays in force: %s", self._what, message)

    def _look(self) -> Stamp | None:
        """What tells the files from later ones; None where nothing would. Follows symbolic links, which is how
        Kubernetes replaces a mounted secret."""
        stamp = []
        try:
            for path in self._paths():
                found = path.stat()
                if max(found.st_mtime, found.st_ctime) > self._wall_clock() - _SETTLED_SECONDS:
                    return None
                stamp.append((str(path), found.st_mtime_ns, found.st_ctime_ns, found.st_ino, found.st_size))
        except OSError:
            return None  # reading them says what is wrong
        return tuple(stamp)


class Reloader:
    """A thread that refreshes its parts every so often: neither a busy event loop nor a busy pool delays it."""

    def __init__(self, parts: Sequence[Reloadable], *, seconds: float = 1.0) -> None:
        self._parts = tuple(parts)
        self._seconds = seconds
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="reloader", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Returns when the thread has ended."""
        self._stopped.set()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        told: set[str] = set()
        while not self._stopped.wait(self._seconds):
            for part in self._parts:
                try:
                    part.refresh()
                except Exception as error:  # logged with its traceback; without this thread revoked keys would work on
                    if repr(error) not in told and len(told) < 16:
                        told.add(repr(error))
                        logger.error("a reload failed", exc_info=error)
