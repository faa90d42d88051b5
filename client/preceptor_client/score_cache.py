"""A cache of scores in a file, for replay and for training without a server. Knows nothing of what it holds.

Where the file or the disk fails it warns once, and scoring goes on without it: a cache gives no wrong answers.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Literal, Self, TypeVar

from preceptor_client.cache_file import CacheFile, DamagedEntryError, ForeignFileError
from preceptor_client.errors import NotInCacheError

_log = logging.getLogger(__name__)

DEFAULT_MAX_BYTES = 10 << 30

CacheMode = Literal["use", "refresh", "offline"]
ValueT = TypeVar("ValueT")
_FAILURES = (sqlite3.Error, OSError, ForeignFileError)


class ScoreCache:
    """Holds what teachers answered. May be shared by clients, threads and processes; whoever opened it closes it."""

    def __init__(self, path: Path | str, *, max_bytes: int = DEFAULT_MAX_BYTES, mode: CacheMode = "use") -> None:
        """`mode`: "use" answers from the cache what it has; "refresh" asks for everything anew and stores it;
        "offline" asks no server, and what the cache lacks raises NotInCacheError. `max_bytes` bounds the scores in the
        file; what a server says of itself, and registrations, come on top: megabytes. Raises ValueError where the mode
        is "offline" and the file cannot be used."""
        if mode not in ("use", "refresh", "offline"):
            raise ValueError(f'mode={mode!r} must be "use", "refresh" or "offline"')
        if max_bytes <= 0:
            raise ValueError(f"max_bytes={max_bytes} must be above 0")
        self.path = Path(path)
        self.mode: CacheMode = mode
        self._has_warned = False
        self._may_write = mode != "offline"
        # One thread: SQLite's calls take turns, and none of them stops an event loop.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="preceptor-score-cache")
        self._file: CacheFile | None = None
        try:
            self._file = CacheFile(self.path, max_bytes=max_bytes, must_exist=mode == "offline")
        except _FAILURES as error:
            if mode == "offline":
                raise ValueError(
                    f"score cache {self.path} cannot be used ({error}): name one that a run with this teacher filled"
                ) from error
            self.warn(error, consequence="every group is asked of the server")

    async def get(self, key: bytes) -> bytes | None:
        """The value that was stored under `key`; None where there is none."""
        return await self._run(lambda file: file.get(key))

    async def put(self, key: bytes, value: bytes) -> None:
        """Stores a value."""
        if not await self._write(lambda file: file.put(key, value), otherwise=True):
            self.warn(f"{len(value)} bytes are more than max_bytes", consequence="such answers are not stored")

    async def discard(self, key: bytes) -> None:
        """Forgets a value."""
        await self._write(lambda file: file.discard(key), otherwise=None)

    async def get_fact(self, name: str) -> bytes | None:
        """What is stored by name, and never evicted."""
        return await self._run(lambda file: file.get_fact(name))

    async def put_fact(self, name: str, value: bytes) -> None:
        """Stores it by name."""
        await self._write(lambda file: file.put_fact(name, value), otherwise=None)

    async def fact_names(self, prefix: str) -> list[str]:
        """Names that begin so."""
        return await self._run(lambda file: file.fact_names(prefix)) or []

    async def size(self) -> tuple[int, int]:
        """Number of answers, and their bytes on disk."""
        return await self._run(lambda file: file.size()) or (0, 0)

    def close(self) -> None:
        """Closes the file, after what was begun. Closing twice is fine; what is stored later is not."""
        self._thread.shutdown()
        if self._file is not None:
            self._file.close()
        self._file = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"ScoreCache({str(self.path)!r}, mode={self.mode!r})"

    async def _write(self, do: Callable[[CacheFile], ValueT], *, otherwise: ValueT) -> ValueT:
        if self._file is None or not self._may_write:
            return otherwise
        try:
            return await self._in_thread(do)
        except _FAILURES as error:
            self._may_write = False
            self.warn(error, consequence="nothing more is stored in it")
            return otherwise

    async def _run(self, do: Callable[[CacheFile], ValueT | None]) -> ValueT | None:
        if self._file is None:
            return None
        try:
            return await self._in_thread(do)
        except DamagedEntryError:
            self.warn("an entry is damaged", consequence="damaged entries are asked for again")
        except _FAILURES as error:
            if self.mode == "offline":
                raise NotInCacheError(f"score cache {self.path} cannot be read: {error}") from error
            self._give_up()
            self.warn(error, consequence="every group is asked of the server")
        return None

    def _give_up(self) -> None:
        """Closes the file in its own thread, where other calls may be under way: those fail, and find it given up."""
        file, self._file = self._file, None
        if file is not None:
            self._thread.submit(file.close)

    async def _in_thread(self, do: Callable[[CacheFile], ValueT]) -> ValueT:
        file = self._file
        assert file is not None
        return await asyncio.get_running_loop().run_in_executor(self._thread, do, file)

    def warn(self, reason: Exception | str, *, consequence: str) -> None:
        """Once in a cache's life."""
        if not self._has_warned:
            _log.warning("score cache fails: path=%s reason=%r: %s", self.path, str(reason), consequence)
        self._has_warned = True
