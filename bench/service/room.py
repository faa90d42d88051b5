"""What a scenario is given: a folder, code to test, a bound on its time and on its size."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.service.engines import Teacher, TinyLlama
from bench.service.results import Result
from bench.service.servers import Server, running_server
from bench.service.trees import Tree


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """Of one scenario."""

    folder: Path
    tree: Tree
    """What is tested, servers and clients."""
    other: Tree | None = None
    """What it is compared with, by the scenarios that compare."""
    minutes: float = 5.0
    """How long its longest part may take; parts that count events end early when it is over."""
    scale: float = 1.0
    """Factor on calls, messages and faults."""
    num_processes: int = 64
    """Most client processes at once."""

    def count(self, number: int) -> int:
        """`number` at full scale, at least 1."""
        return max(1, round(number * self.scale))

    def part(self, name: str, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:  # Any: JSON
        """What `measure` found, saved at once; what an earlier run saved, where that was cut short."""
        path = self.folder / "parts" / f"{name.replace(' ', '-').replace('/', '-')}.json"
        if not path.exists():
            found = measure()
            path.parent.mkdir(exist_ok=True)
            unfinished = path.with_suffix(".part")
            unfinished.write_text(json.dumps(found, indent=1) + "\n")
            unfinished.replace(path)
        saved: dict[str, Any] = json.loads(path.read_text())
        return saved

    def server(
        self,
        teacher: Teacher,
        *arguments: str,
        name: str = "server",
        with_http: bool = False,
        max_open_files: int | None = None,
    ) -> AbstractContextManager[Server]:
        """One of the tested tree, for the length of a block."""
        return running_server(
            self.folder / name,
            teacher,
            *arguments,
            tree=self.tree,
            with_http=with_http,
            max_open_files=max_open_files,
        )

    def tiny_llama(self) -> TinyLlama:
        """The hf engine's model; its weights are those of every other tiny Llama."""
        return TinyLlama(folder=self.folder.parent / "tiny-llama")


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """Something that is done to a service."""

    name: str
    about: str
    """One line for --help."""
    run: Callable[[Room], Result]
