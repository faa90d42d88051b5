"""Commands that SIGINT reaches, as Ctrl-C would at a terminal."""

from __future__ import annotations

import os
import signal
import subprocess
import sys


def started(*arguments: str) -> subprocess.Popen[str]:
    """`preceptor` with these arguments, as a process. What a script starts in its background ignores SIGINT, this
    process perhaps, and would hand that on."""
    return subprocess.Popen(
        [sys.executable, "-m", "preceptor_client.cli", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "COLUMNS": "200"},
        preexec_fn=heed_interrupts,
    )


def heed_interrupts() -> None:
    """For `preexec_fn`."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
