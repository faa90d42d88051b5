"""Computes one text in a copy of this process, on another core, while this one goes on. Starts before all threads."""

from __future__ import annotations

import os
from collections.abc import Callable


class Forked:
    """A copy of this process that computes `compute()`; it sees the memory as it was, and changes nothing here."""

    def __init__(self, compute: Callable[[], str]) -> None:
        self._read_end, write_end = os.pipe()
        self._pid = os.fork()
        if self._pid == 0:
            status = 1
            try:
                os.write(write_end, compute().encode())  # short enough for a pipe to take it whole
                status = 0
            finally:
                # Nothing of this copy may run on: neither what follows nor what an exit would do.
                os._exit(status)
        os.close(write_end)

    def result(self) -> str:
        """Waits for it. Raises MemoryError where the copy ended without an answer: nothing else can end it so."""
        with os.fdopen(self._read_end, "rb") as stream:
            text = stream.read().decode()
        _, status = os.waitpid(self._pid, 0)
        if status != 0:
            raise MemoryError("a copy of this process ended early")
        return text
