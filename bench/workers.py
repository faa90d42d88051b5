"""Processes that measure one thing each, when asked: so rounds can be interleaved, and memory is nobody else's.

A request is a line of JSON on the worker's standard input, its answer a line on its standard output.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

Request = Mapping[str, str | int]
Answer = dict[str, float]

STOP_SECONDS = 30


class WorkerFailedError(Exception):
    """A worker ended instead of answering; the text is the last line that it wrote on standard error."""


class Worker:
    """The asking side. Ends its process when left."""

    def __init__(self, module: str, *arguments: str, paths: Sequence[Path] = ()) -> None:
        """Runs `python -m module arguments...`; packages in `paths` come before the installed ones."""
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115  # lives as long as the process
        environment = dict(os.environ)
        if paths:
            environment["PYTHONPATH"] = os.pathsep.join([*map(str, paths), os.environ.get("PYTHONPATH", "")])
        self._process = subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env=environment,
            text=True,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait(STOP_SECONDS)
        for stream in (self._process.stdin, self._process.stdout):
            assert stream
            stream.close()
        self._errors.close()

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._process.pid

    def ask(self, **request: str | int) -> Answer:
        """Waits for the answer, which is numbers. Raises WorkerFailedError where there is none."""
        answer: Answer = self.ask_for_fields(**request)
        return answer

    def ask_for_fields(self, **request: str | int) -> dict[str, Any]:  # Any: whatever JSON holds
        """As `ask`, of a worker that answers with more than numbers."""
        assert self._process.stdin
        assert self._process.stdout
        if self._process.poll() is None:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise WorkerFailedError(self._last_words())
        fields: dict[str, Any] = json.loads(line)
        return fields

    def _last_words(self) -> str:
        status = self._process.wait(STOP_SECONDS)
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else f"ended with status {status}"


def serve(prepare: Callable[[], Callable[[Request], Mapping[str, object]]]) -> None:
    """The answering side, until standard input ends. What libraries print meanwhile goes to standard error."""
    with os.fdopen(os.dup(1), "w") as answers:
        os.dup2(2, 1)
        answer = prepare()
        for line in sys.stdin:
            answers.write(json.dumps(answer(json.loads(line))) + "\n")
            answers.flush()
