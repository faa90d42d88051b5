"""A small caller that asks again and again while something large happens: how long it waits at most."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from bench.service.loads import Load, Report, Shape, client_processes, now
from bench.service.room import Room
from bench.service.servers import Server

SHAPE = Shape(prompt=16, num_responses=1, response=32)
PER_SECOND = 10.0


@dataclass(slots=True)
class Steady:
    """Filled when the block is left."""

    report: Report | None = None
    spans: dict[str, tuple[float, float]] = field(default_factory=dict)

    @contextmanager
    def during(self, name: str) -> Iterator[None]:
        """Names a stretch of time."""
        since = now()
        try:
            yield
        finally:
            self.spans[name] = (since, now())

    def longest(self, name: str) -> float:
        """Seconds of the group that took longest among those that were waiting in that time."""
        assert self.report is not None, "known after the block"
        since, until = self.spans[name]
        return max((one.seconds for one in self.report.samples if one.ended >= since and one.began <= until), default=0)

    @property
    def num_failed(self) -> int:
        assert self.report is not None, "known after the block"
        return self.report.num_failed


@contextmanager
def steady_caller(room: Room, server: Server, *, seconds: float) -> Iterator[Steady]:
    """For the length of the block, and at most so long. Its groups are sent whether or not the ones before are back."""
    steady, stop_file = Steady(), room.folder / "stop"
    stop_file.unlink(missing_ok=True)
    load = Load(
        address=server.address,
        kind="open",
        caller="steady",
        shape=SHAPE,
        per_second=PER_SECOND,
        seconds=seconds,
        stop_file=str(stop_file),
        timeout_seconds=600.0,
    )
    with client_processes([load], tree=room.tree) as clients:
        wait: Callable[[], list[Report]] = clients.go()
        yield steady
        stop_file.touch()
        steady.report = wait()[0]
