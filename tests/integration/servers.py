"""Real servers for tests: own processes on loopback, ports from the kernel, ended by their own id."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

MAY_UPDATE_WEIGHTS = ("--access.anonymous-rights", '["score", "register", "look", "update_weights"]')
"""For servers without keys whose callers replace weights."""
START_SECONDS = 90
REPOSITORY = Path(__file__).parents[2]
STOP_SECONDS = 30


def python_path() -> str:
    """PYTHONPATH of a server, on which it finds the engines in tests/engines, wherever it is started from."""
    return os.pathsep.join([str(REPOSITORY), *filter(None, [os.environ.get("PYTHONPATH")])])


@dataclass(slots=True)
class RunningServer:
    """A preceptor-server process that answers at `address`; its log grows in `log`."""

    process: subprocess.Popen[bytes]
    address: str
    log: Path

    def stop(self) -> int:
        """SIGTERM; returns the exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(STOP_SECONDS)

    def kill(self) -> None:
        """SIGKILL."""
        self.process.kill()
        self.process.wait(STOP_SECONDS)


def start_server(
    folder: Path, *arguments: str, port: int = 0, start_seconds: float = START_SECONDS, cwd: Path | None = None
) -> RunningServer:
    """Starts a server, in the folder `cwd`, and waits until it answers. Raises AssertionError with its log where it
    does not."""
    folder.mkdir(parents=True, exist_ok=True)
    address_file, log = folder / "address", folder / "server.log"
    address_file.unlink(missing_ok=True)
    with log.open("ab") as output:
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "preceptor_server.cli", *arguments),
                *("--listen.port", str(port), "--listen.address-file", str(address_file)),
            ],
            stdout=output,
            stderr=output,
            cwd=cwd,
            env={**os.environ, "PYTHONPATH": python_path(), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        )
    deadline = time.monotonic() + start_seconds
    while not address_file.exists():
        if process.poll() is not None or time.monotonic() > deadline:
            process.kill()
            process.wait(STOP_SECONDS)
            raise AssertionError(f"the server did not start:\n{log.read_text()}")
        time.sleep(0.02)
    return RunningServer(process, address_file.read_text(), log)


@contextmanager
def running_server(
    folder: Path, *arguments: str, start_seconds: float = START_SECONDS, cwd: Path | None = None
) -> Iterator[RunningServer]:
    """A server for the length of the block."""
    server = start_server(folder, *arguments, start_seconds=start_seconds, cwd=cwd)
    try:
        yield server
    finally:
        if server.process.poll() is None:
            server.kill()


def run_server_to_its_end(
    *arguments: str, timeout_seconds: float = START_SECONDS, cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Runs a server that is expected to refuse to start."""
    return subprocess.run(
        [sys.executable, "-m", "preceptor_server.cli", *arguments],
        capture_output=True,
        text=True,
        timeout=timeout_seconds,
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": python_path(), "HF_HUB_OFFLINE": "1"},
    )
