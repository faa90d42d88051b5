"""Runs the worker: starts the process, hands it a job, reads its answer, and ends it when time or the caller is up."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import Sequence

from preceptor_server.alignment.exchange import ExchangeError, PairingJob, pack_job, unpack_pairing
from preceptor_server.alignment.types import Pairing
from preceptor_server.errors import InvalidTokenizerError

_log = logging.getLogger(__name__)

# -P: nothing is imported from the folder that the server was started in.
_COMMAND = (sys.executable, "-P", "-m", "preceptor_server.alignment.worker")
FINDS_PYTHON = ("PATH", "PYTHONPATH", "PYTHONHOME", "LD_LIBRARY_PATH", "LANG", "LC_ALL")
"""What of the server's environment the worker gets: enough to start, and no secrets."""
_FEW_THREADS = {
    "OPENBLAS_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "RAYON_NUM_THREADS": "4",
    "TOKENIZERS_PARALLELISM": "true",
}
"""Cutting hundreds of thousands of texts is half of a worker's time, and the rest is not parallel."""
_TOO_COSTLY = (signal.SIGXCPU, signal.SIGKILL, signal.SIGABRT)
"""What ends a worker that used up its time, or for which there was no more memory: Rust then aborts."""
_MAX_LOGGED_BYTES = 2000


class WorkerProcess:
    """Pairs in a process of its own, one per job."""

    def __init__(self, *, timeout_seconds: float, command: Sequence[str] = _COMMAND) -> None:
        """`command` is what to run; another is for tests."""
        self._timeout_seconds = timeout_seconds
        self._command = command

    async def pair(self, job: PairingJob) -> Pairing:
        """Raises InvalidTokenizerError where the tokenizer cannot be used; cancelling it ends the process."""
        environment = {name: os.environ[name] for name in FINDS_PYTHON if name in os.environ} | _FEW_THREADS
        # A session of its own: Ctrl-C in a terminal is for the server, which then ends this process itself.
        process = await asyncio.create_subprocess_exec(
            *self._command, stdin=PIPE, stdout=PIPE, stderr=PIPE, env=environment, start_new_session=True
        )
        try:
            async with asyncio.timeout(self._timeout_seconds):
                answer, complaints = await process.communicate(pack_job(job))
        except TimeoutError as error:
            raise self._too_costly(f"more than {self._timeout_seconds:g} s") from error
        finally:
            await _end(process)
        if complaints:
            said = complaints[-_MAX_LOGGED_BYTES:].decode(errors="replace")
            _log.warning("tokenizer worker pid=%d said=%r", process.pid, said)
        return self._read(answer, returncode=process.returncode)

    def _read(self, answer: bytes, *, returncode: int | None) -> Pairing:
        if returncode == 0:
            return unpack_pairing(answer)
        if returncode is not None and returncode < 0:
            if -returncode in _TOO_COSTLY:
                raise self._too_costly("more time or memory than a tokenizer may have")
            raise InvalidTokenizerError(f"the tokenizers library crashes on it ({signal.Signals(-returncode).name})")
        raise ExchangeError(f"the tokenizer worker ended with status {returncode}, see the log")

    def _too_costly(self, what: str) -> InvalidTokenizerError:
        return InvalidTokenizerError(
            f"reading it takes {what}: is it a tokenizer.json as its library wrote it? The server's "
            f"limits.tokenizer_seconds is {self._timeout_seconds:g}",
            reason="TOKENIZER_TOO_COSTLY",
        )


async def _end(process: Process) -> None:
    """Kills the process, and the copies that it made of itself, if it still runs; waits until it is gone."""
    if process.returncode is None:
        # Its session is its own, and with it the group, whose number is its own too.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    await process.wait()
