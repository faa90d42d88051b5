"""The process that renders large chats: starts it, asks it, and ends it when time or the caller is up.

It blocks, so it is for the workbench's threads, never for the event loop.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import select
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Iterator

from preceptor_server.alignment.chat_template import MAX_SECONDS, WritesChats
from preceptor_server.alignment.render_worker import LENGTH_BYTES, REFUSAL
from preceptor_server.alignment.sent_chat import SentChat
from preceptor_server.alignment.workbench import Turn
from preceptor_server.alignment.worker_process import FINDS_PYTHON
from preceptor_server.errors import InvalidRequestError, ServerError

_log = logging.getLogger(__name__)

# -P: nothing is imported from the folder that the server was started in.
_COMMAND = (sys.executable, "-P", "-m", "preceptor_server.alignment.render_worker")
_START_SECONDS = 60.0
_GRACE_SECONDS = 10.0
"""Beyond the time of a template: for the code of libraries, which its own clock does not watch, and for the pipes."""
_POLL_MS = 20
_READ_BYTES = 1 << 20


class RenderProcess:
    """Renders with one tokenizer's template. One conversation at a time; it is started again where it ended."""

    def __init__(self, tokenizer: WritesChats, *, max_seconds: float = MAX_SECONDS) -> None:
        special = json.loads(json.dumps(dict(tokenizer.special_tokens_map), default=str))
        parts = {"chat_template": tokenizer.chat_template, "special_tokens_map": special}
        self._start = json.dumps({"tokenizer": parts, "max_seconds": max_seconds}).encode()
        self._max_seconds = max_seconds
        self._turn = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._ending: weakref.finalize[..., RenderProcess] | None = None
        """Ends the process, at the latest with this object."""

    def render(self, chat: SentChat, *, max_bytes: int | None, field: str, turn: Turn) -> str:
        """The conversation as the teacher reads it. Raises InvalidRequestError, whose reason is TOO_LONG where it has
        more than `max_bytes`, and DeadlinePassedError where nobody waits any more."""
        import orjson  # a server without HTTP imports it only for chats that are large

        try:
            job = orjson.dumps({"chat": chat, "max_bytes": max_bytes, "field": field})
        except TypeError as error:  # what the library says of half of a surrogate pair
            message = "holds half of a surrogate pair, which is no text"
            raise InvalidRequestError(f"{field}.messages", message) from error
        with self._alone(turn):
            answer = self._ask(job, field=field, turn=turn)
        if answer[:1] == REFUSAL:
            named, message, reason = json.loads(memoryview(answer)[1:].tobytes())
            raise InvalidRequestError(named or f"{field}.messages", message, reason=reason)
        return str(memoryview(answer)[1:], "utf-8", "surrogatepass")

    def start(self) -> None:
        """Starts it, so that the first conversation does not wait for that."""
        with self._alone(Turn()):
            self._started()

    def close(self) -> None:
        self._process = None
        if self._ending is not None:
            self._ending()

    @contextlib.contextmanager
    def _alone(self, turn: Turn) -> Iterator[None]:
        while not self._turn.acquire(timeout=_POLL_MS / 1000):
            turn.check()
        try:
            yield
        finally:
            self._turn.release()

    def _ask(self, job: bytes, *, field: str, turn: Turn) -> bytearray:
        process = self._started()
        is_done = False
        try:
            deadline = time.monotonic() + 2 * self._max_seconds + _GRACE_SECONDS
            _send(process, job)
            answer = _receive(process, turn=turn, deadline=deadline)
            is_done = True
        except TimeoutError as error:
            message = f"rendering them takes more than {2 * self._max_seconds + _GRACE_SECONDS:g} s: send less"
            raise InvalidRequestError(f"{field}.messages", message, reason="BEYOND_CONTEXT") from error
        except (EOFError, BrokenPipeError) as error:
            _log.warning("the render process ended pid=%d status=%s", process.pid, process.poll())
            message = "rendering them ended the process that does it, by its time or memory: send less"
            raise InvalidRequestError(f"{field}.messages", message, reason="BEYOND_CONTEXT") from error
        finally:
            if not is_done:  # its answer to this one must not become that to the next
                self.close()
        return answer

    def _started(self) -> subprocess.Popen[bytes]:
        if self._process is None or self._process.poll() is not None:
            self.close()
            environment = {name: os.environ[name] for name in FINDS_PYTHON if name in os.environ}
            # A session of its own: Ctrl-C in a terminal is for the server, which then ends this process itself.
            process = subprocess.Popen(
                _COMMAND,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env=environment | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
                start_new_session=True,
                bufsize=0,
            )
            try:
                _send(process, self._start)
                _receive(process, turn=Turn(), deadline=time.monotonic() + _START_SECONDS)
            except (TimeoutError, EOFError, BrokenPipeError) as error:
                _end(process)
                raise ServerError("the process that renders chats does not start, see its words above") from error
            self._process, self._ending = process, weakref.finalize(self, _end, process)
        return self._process


def _send(process: subprocess.Popen[bytes], data: bytes) -> None:
    assert process.stdin is not None, "it was started with a pipe"
    for part in (len(data).to_bytes(LENGTH_BYTES, "little"), data):
        rest = memoryview(part)
        while rest:
            rest = rest[os.write(process.stdin.fileno(), rest) :]


def _receive(process: subprocess.Popen[bytes], *, turn: Turn, deadline: float) -> bytearray:
    """The next frame. Raises TimeoutError, EOFError, and what the turn raises."""
    assert process.stdout is not None, "it was started with a pipe"
    descriptor = process.stdout.fileno()
    length = _read(descriptor, LENGTH_BYTES, turn=turn, deadline=deadline)
    return _read(descriptor, int.from_bytes(length, "little"), turn=turn, deadline=deadline)


def _read(descriptor: int, length: int, *, turn: Turn, deadline: float) -> bytearray:
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    received = bytearray()
    while len(received) < length:
        while not poll.poll(_POLL_MS):
            turn.check()
            if time.monotonic() > deadline:
                raise TimeoutError
        data = os.read(descriptor, min(length - len(received), _READ_BYTES))
        if not data:
            raise EOFError
        received += data
    return received


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            stream.close()
