"""A teacher server as a process of its own, for as long as a study needs it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ENVIRONMENT = {"HF_HUB_OFFLINE": "1", "OMP_WAIT_POLICY": "PASSIVE", "TQDM_DISABLE": "1", **os.environ}
"""For the server and for what is trained beside it: no network, and neither may spin while the other computes."""
_START_SECONDS = 300
_STOP_SECONDS = 30


@contextmanager
def running_teacher(*arguments: str, folder: Path) -> Iterator[str]:
    """preceptor-server on a port from the kernel, its log in `folder`/teacher.log; yields its address."""
    command = [sys.executable, "-m", "preceptor_server.cli", *arguments]
    with (folder / "teacher.log").open("wb") as log:
        server = subprocess.Popen(
            [*command, "--listen.address-file", str(folder / "address")], stdout=log, stderr=log, env=ENVIRONMENT
        )
    try:
        yield _address_of(server, folder=folder)
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(_STOP_SECONDS)


def _address_of(server: subprocess.Popen[bytes], *, folder: Path) -> str:
    """Waits until the server answers."""
    print("starting the teacher and checking it (a minute) ...", flush=True)
    deadline = time.monotonic() + _START_SECONDS
    while not (folder / "address").exists():
        if server.poll() is not None or time.monotonic() > deadline:
            raise SystemExit(f"the teacher did not start: see {folder / 'teacher.log'}")
        time.sleep(0.1)
    return (folder / "address").read_text()
