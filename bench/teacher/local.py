"""The asking side of the ways without a socket."""

from __future__ import annotations

import sys
from typing import Self

from bench.teacher.outcome import Outcome
from bench.teacher.process_tree import ProcessTree
from bench.teacher.servers import ServerSettings
from bench.teacher.workloads import Job
from bench.workers import Worker


class LocalWay:
    """A worker process that makes a job's groups, scores them and tells the time, all by itself."""

    def __init__(self, kind: str, settings: ServerSettings) -> None:
        arguments = (kind, str(settings.model), settings.dtype)
        self.command = (sys.executable, "-m", "bench.teacher.local_worker", *arguments)
        self._worker = Worker("bench.teacher.local_worker", *arguments)
        self.tree = ProcessTree(self._worker.pid)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.tree.resume()
        self._worker.__exit__(None, None, None)

    def run(self, job: Job) -> Outcome:
        return Outcome(**self._worker.ask_for_fields(job=job.to_json()))
