"""What vLLM's processes write to stderr, passed on and remembered: the reason of a failed start is told nowhere else.

vLLM's engine core is a child process; when it cannot start, the parent learns only that it did not.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

_STDERR = 2
_NUM_KEPT = 400


class ProcessLog:
    """The last lines that children started inside `capturing` wrote, for as long as they live."""

    def __init__(self) -> None:
        self._lines: deque[str] = deque(maxlen=_NUM_KEPT)

    @property
    def lines(self) -> list[str]:
        return list(self._lines)

    @contextmanager
    def capturing(self) -> Iterator[None]:
        """Children started in this block inherit a pipe as stderr; a thread passes it on until the last one ends."""
        own = os.dup(_STDERR)
        reading, writing = os.pipe()
        os.dup2(writing, _STDERR)
        os.close(writing)
        threading.Thread(target=self._pass_on, args=(reading, os.dup(own)), daemon=True, name="vllm-log").start()
        try:
            yield
        finally:
            os.dup2(own, _STDERR)
            os.close(own)

    def _pass_on(self, reading: int, writing: int) -> None:
        with os.fdopen(reading, errors="replace") as source, os.fdopen(writing, "w", errors="replace") as sink:
            for line in source:
                self._lines.append(line.rstrip("\n"))
                sink.write(line)
                sink.flush()
