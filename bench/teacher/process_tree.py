"""A process and its descendants: paused while others are measured, weighed, ended. Linux."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import psutil

SAMPLE_SECONDS = 1.0
STOP_SECONDS = 60


class ProcessTree:
    """By the id of its root, which this bench started."""

    def __init__(self, pid: int) -> None:
        self._root = psutil.Process(pid)

    def pause(self) -> None:
        """Even an idle server may spin: vLLM's worker polls for its next step."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._signal(signal.SIGCONT)

    @contextmanager
    def awake(self) -> Iterator[None]:
        """Runs for the length of the block, and is paused after it."""
        self.resume()
        try:
            yield
        finally:
            self.pause()

    def end(self) -> None:
        """SIGTERM to the root, which ends its children; SIGKILL for what is left a minute later."""
        members = self._members()
        self.resume()
        with suppress(psutil.NoSuchProcess):
            self._root.terminate()
        _, left = psutil.wait_procs(members, timeout=STOP_SECONDS)
        for process in left:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(left, timeout=STOP_SECONDS)

    def num_bytes(self) -> int:
        """Memory in use: proportional set size, so what several of its processes share counts once."""
        total = 0
        for process in self._members():
            with suppress(psutil.NoSuchProcess):
                total += process.memory_full_info().pss
        return total

    def _members(self) -> list[psutil.Process]:
        try:
            return [self._root, *self._root.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def _signal(self, number: signal.Signals) -> None:
        for process in self._members():
            with suppress(psutil.NoSuchProcess):
                process.send_signal(number)


class PeakMemory:
    """Weighs a tree every second for the length of a block."""

    def __init__(self, tree: ProcessTree) -> None:
        self._tree = tree
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="peak-memory")
        self.num_bytes = 0
        """The most that was seen."""

    def __enter__(self) -> PeakMemory:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self._thread.join()

    def _watch(self) -> None:
        is_over = False
        while not is_over:
            is_over = self._is_over.wait(SAMPLE_SECONDS)
            self.num_bytes = max(self.num_bytes, self._tree.num_bytes())
