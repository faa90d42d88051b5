"""Rows 2 and 3: what one large message costs everyone else, and the server's memory."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from bench.service.engines import MAX_BATCH_TOKENS
from bench.service.loads import Load, Shape, percentile, run_loads
from bench.service.results import Figure, Result
from bench.service.room import Room, Scenario
from bench.service.servers import Server, Watch
from bench.service.steady import steady_caller
from bench.workers import Worker

MAX_BATCHES = 2.0
REFUSED_SECONDS, REFUSED_MIB = 0.1, 100.0
MESSAGES = (
    ("text of 8 MB", "text", 8_000_000, "5.1 s; 1.8 GiB"),
    ("text of 60 MB", "text", 60_000_000, "69 s; 10.1 GiB"),
    ("chat of 200,000 messages", "chat", 200_000, "5.8 s; 5.8 GiB"),
    ("1,023 candidates x 16,000 positions", "wide", 16_000, "75 s; 14.5 GiB"),
    ("60 MiB: the same, two responses", "candidates", 15_000, ""),
)
REFUSED = ("text", "chat")
BATCH = Shape(prompt=64, num_responses=8, response=504)
"""A full batch by itself."""
NUM_BATCHES = 8


def run(room: Room) -> Result:
    figures: list[Figure] = []
    details: dict[str, Any] = {}  # Any: JSON
    for title, what, size, old in MESSAGES:

        def measure(what: str = what, size: int = size) -> dict[str, Any]:  # Any: JSON
            with room.server(room.tiny_llama(), name=what) as server, _large(room, what, room.count(size)) as large:
                _batch_seconds(room, server)  # warms up
                batch = _batch_seconds(room, server)
                return {**_cost(room, server, large), "batch_seconds": batch, "alive": server.is_alive()}

        details[title] = one = room.part(title, measure)
        figures += _figures(title, what, one, old)
    return Result(scenario=SCENARIO.name, figures=tuple(figures), details=details)


def _figures(title: str, what: str, one: dict[str, Any], old: str) -> list[Figure]:  # Any: JSON
    batches = one["longest"] / one["batch_seconds"]
    is_met = batches <= MAX_BATCHES
    figures = [
        Figure(what=f"{title}: others wait", value=one["longest"], unit="s", old=old.partition(";")[0]),
        Figure(what=f"{title}: the same", value=batches, unit="batches", wanted=f"<= {MAX_BATCHES:g}", is_met=is_met),
    ]
    if what in REFUSED:
        is_small = one["cost_mib"] <= REFUSED_MIB
        is_quick = one["cost_seconds"] <= REFUSED_SECONDS
        figures += [
            Figure(what=f"{title}: refused with {one['code']} after", value=one["seconds"], unit="s"),
            Figure(what=f"{title}: beyond receiving it", value=one["cost_seconds"], unit="s",
                   wanted=f"<= {REFUSED_SECONDS}", is_met=is_quick and one["code"] != "OK"),
            Figure(what=f"{title}: server grew by", value=one["grown_mib"], unit="MiB", old=old.partition("; ")[2]),
            Figure(what=f"{title}: beyond receiving it", value=one["cost_mib"], unit="MiB",
                   wanted=f"<= {REFUSED_MIB:g}", is_met=is_small),
        ]  # fmt: skip
    else:
        figures += [
            Figure(what=f"{title}: answered {one['code']} after", value=one["seconds"], unit="s"),
            Figure(what=f"{title}: server grew by", value=one["grown_mib"], unit="MiB", old=old.partition("; ")[2]),
        ]
    return figures


def _cost(room: Room, server: Server, large: Worker) -> dict[str, Any]:  # Any: JSON
    """Beside those of its twin: as large, and refused for its request_id, so that receiving it is all it costs."""
    longest_seconds = room.minutes * 60
    with steady_caller(room, server, seconds=longest_seconds) as steady, Watch(server) as watch:
        with steady.during("alone"):
            time.sleep(3.0)
        twin = large.ask_for_fields(do="send twin", address=server.address, caller="large", seconds=600)
        twin_peak = watch.peak_mib
        with steady.during("large"):
            fields = large.ask_for_fields(
                do="send", address=server.address, caller="large", seconds=round(longest_seconds)
            )
        time.sleep(1.0)
    return {
        **fields,
        "longest": steady.longest("large"),
        "longest_alone": steady.longest("alone"),
        "steady_failed": steady.num_failed,
        "before_mib": watch.before_mib,
        "grown_mib": watch.grown_mib,
        "twin": twin,
        "cost_seconds": fields["seconds"] - twin["seconds"],
        "cost_mib": watch.peak_mib - twin_peak,
    }


@contextmanager
def _large(room: Room, what: str, size: int) -> Iterator[Worker]:
    """A process that holds the message ready."""
    with Worker("bench.service.large_client", paths=room.tree.paths) as worker:
        worker.ask_for_fields(do="make", what=what, size=size, seed=1)
        yield worker


def _batch_seconds(room: Room, server: Server) -> float:
    """Median time that a caller alone waits for a group that fills a batch."""
    load = Load(address=server.address, kind="closed", shape=BATCH, num_groups=NUM_BATCHES, seconds=120.0)
    assert BATCH.num_tokens == MAX_BATCH_TOKENS
    return percentile(run_loads([load], tree=room.tree)[0].latencies(), 50)


SCENARIO = Scenario(
    name="large", about="8 and 60 MB of text, 200,000 messages, 1,023 candidates: what others wait", run=run
)
