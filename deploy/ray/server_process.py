"""One preceptor-server as a child process: starts it, starts it again when it ends by itself, drains it.

Nothing happens between calls: whoever owns it calls `tend` every second or so. Knows nothing of Ray.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

MAX_BACKOFF_SECONDS = 30.0
STABLE_SECONDS = 60.0
"""A server that answered for so long is started again at once when it ends."""
KILL_AFTER_SECONDS = 60.0
"""How long a server may take to drain."""
_LOG_TAIL_CHARACTERS = 2000
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """What became of a server by now."""

    address: str
    """Where it answers; empty while it does not."""
    pid: int
    """Its process; 0 while there is none."""
    num_starts: int
    exit_status: int | None
    """Of the process that ended last; negative = the signal that ended it. None while none has ended."""
    log: str
    """The file with what it writes."""
    log_tail: str
    """The end of that, where no server is running."""


class ServerProcess:
    """A child process that ends with its parent, and no process that it did not start is ever ended here."""

    def __init__(self, arguments: Sequence[str], *, host: str, is_public: bool, port: int = 0) -> None:
        """`arguments` are preceptor-server's; `port` 0 asks the kernel, once: a restarted server keeps its port."""
        self._arguments = (*arguments, "--listen.host", host)
        if is_public:
            self._arguments += ("--listen.allow-insecure", "true")
        self._port = port
        self._folder = Path(tempfile.mkdtemp(prefix="preceptor-replica-"))
        self._address_file, self._log = self._folder / "address", self._folder / "server.log"
        self._process: subprocess.Popen[bytes] | None = None
        self._address = ""
        self._num_starts = 0
        self._num_failures = 0
        self._answered_at: float | None = None
        self._next_start = 0.0
        self._exit_status: int | None = None

    def tend(self) -> State:
        """Starts the server if there is none and it is time to, and looks whether it answers. Returns at once."""
        now = time.monotonic()
        if self._process is not None and self._process.poll() is not None:
            self._bury(now)
        if self._process is None and now >= self._next_start:
            self._start()
        if not self._address and self._process is not None and self._address_file.exists():
            self._address = self._address_file.read_text()
            self._port = int(self._address.rpartition(":")[2])
            self._answered_at = now
        return self.state()

    def state(self) -> State:
        """What is known without looking again."""
        tail = "" if self._process is not None or not self._log.exists() else self._log.read_text(errors="replace")
        return State(
            address=self._address,
            pid=0 if self._process is None else self._process.pid,
            num_starts=self._num_starts,
            exit_status=self._exit_status,
            log=str(self._log),
            log_tail=tail[-_LOG_TAIL_CHARACTERS:],
        )

    def drain(self) -> State:
        """SIGTERM, so that what is in flight is finished; SIGKILL where that takes too long. Waits for the end."""
        if self._process is not None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._exit_status = self._process.wait(KILL_AFTER_SECONDS)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._exit_status = self._process.wait()
            self._process, self._address = None, ""
        self._next_start = float("inf")
        return self.state()

    def _start(self) -> None:
        self._address_file.unlink(missing_ok=True)
        command = [sys.executable, "-m", "preceptor_server.cli", *self._arguments]
        command += ["--listen.port", str(self._port), "--listen.address-file", str(self._address_file)]
        end_with_parent = _end_with_parent() if sys.platform == "linux" else None
        with self._log.open("ab") as output:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,  # Ctrl-C at the launcher's terminal reaches the launcher alone, which drains
                preexec_fn=end_with_parent,
            )
        self._num_starts += 1

    def _bury(self, now: float) -> None:
        assert self._process is not None
        self._exit_status = self._process.returncode
        was_stable = self._answered_at is not None and now - self._answered_at >= STABLE_SECONDS
        self._num_failures = 0 if was_stable else self._num_failures + 1
        self._process, self._address, self._answered_at = None, "", None
        self._next_start = now + backoff_seconds(self._num_failures)


def backoff_seconds(num_failures: int) -> float:
    """How long to wait before the next start: 1, 2, 4 ... seconds, at most MAX_BACKOFF_SECONDS."""
    return 0.0 if num_failures == 0 else min(MAX_BACKOFF_SECONDS, 2.0 ** min(num_failures - 1, 16))


def _end_with_parent() -> Callable[[], None]:
    """For the child: SIGTERM when the thread that started it ends, so that a killed parent leaves no server behind."""
    prctl = ctypes.CDLL(None, use_errno=True).prctl  # loaded here: little is safe between fork and exec
    parent = os.getpid()

    def ask_for_signal() -> None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:
            os._exit(1)

    return ask_for_signal
