"""Row 7: a stream that is written and never read. Row 8: memory of a queue that is full of large groups."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

from bench.service.engines import Fake
from bench.service.loads import Load, run_loads
from bench.service.results import Figure, Result
from bench.service.room import Room, Scenario
from bench.service.servers import Watch
from bench.workers import Worker

NUM_UNREAD = 600
UNREAD_MIB = 64.0
UNREAD_SECONDS = 60
SETTLE_SECONDS = 2.0
NUM_LARGE, LARGE_POSITIONS = 8, 15_000
FULL_SECONDS, WAIT_SECONDS = 20.0, 30
"""By then all have come, and those that were taken still wait."""
MAX_QUEUE_BYTES = 256 << 20
QUEUE_BYTES = "scheduler.max-queue-bytes"
SLOW = Fake(seconds_per_token=0.02, max_model_len=40_000, vocabulary_size=1024)
"""A group takes minutes, so that nothing leaves the queue while its memory is measured."""
QUICK = Fake(seconds_per_token=0.0, vocabulary_size=256)


def run(room: Room) -> Result:
    details: dict[str, Any] = {}  # Any: JSON
    return Result(
        scenario=SCENARIO.name, figures=(*_unread(room, details), *_full_queue(room, details)), details=details
    )


def _unread(room: Room, details: dict[str, Any]) -> tuple[Figure, ...]:  # Any: JSON
    with (
        room.server(QUICK, name="unread") as server,
        Worker("bench.service.stream_client", paths=room.tree.paths) as one,
    ):
        with Watch(server) as watch:
            written = one.ask_for_fields(address=server.address, count=room.count(NUM_UNREAD), seconds=UNREAD_SECONDS)
            time.sleep(SETTLE_SECONDS)
        status = server.process.poll()
        burst = Load(address=server.address, kind="burst", concurrency=8)
        num_answered = 0 if status is not None else run_loads([burst], tree=room.tree)[0].num_ok
    details["unread"] = {**written, "killed": watch.has_killed, "exit_status": status}
    if written["code"] == "UNIMPLEMENTED":
        return (Figure(what="a stream never read", value="there are no streams", old="900 MiB", is_met=True),)
    return (
        Figure(what="a stream never read: groups written", value=written["num_written"]),
        Figure(what="a stream never read: server grew by", value=watch.grown_mib, unit="MiB", old="900 MiB, growing",
               wanted=f"<= {UNREAD_MIB:g}", is_met=watch.grown_mib <= UNREAD_MIB),
        Figure(what="the server's exit status once it is cancelled", value=str(status), wanted="None: it lives",
               is_met=status is None),
        Figure(what="others are answered afterwards", value=num_answered, wanted="8", is_met=num_answered == 8),
    )  # fmt: skip


def _full_queue(room: Room, details: dict[str, Any]) -> tuple[Figure, ...]:  # Any: JSON
    """So many groups at once, each from a process of its own, of which none is served."""
    positions = room.count(LARGE_POSITIONS)
    bounded = room.tree.has_setting(QUEUE_BYTES)
    arguments = [f"--{QUEUE_BYTES}", str(MAX_QUEUE_BYTES)] if bounded else []
    with ExitStack() as stack, ThreadPoolExecutor(NUM_LARGE) as pool:
        server = stack.enter_context(room.server(SLOW, *arguments, name="full"))
        module = "bench.service.large_client"
        workers = [stack.enter_context(Worker(module, paths=room.tree.paths)) for _ in range(NUM_LARGE)]
        sizes = [one.ask(do="make", what="candidates", size=positions, seed=index) for index, one in enumerate(workers)]
        watch = stack.enter_context(Watch(server))
        sent = [
            pool.submit(
                one.ask_for_fields, do="send", address=server.address, caller=f"large-{index}", seconds=WAIT_SECONDS
            )
            for index, one in enumerate(workers)
        ]
        time.sleep(FULL_SECONDS)
        held = server.resident_mib() - watch.before_mib
        answers = [one.result() for one in sent]
    message_mib = sizes[0]["mib"]
    waited = [one for one in answers if one["code"] == "DEADLINE_EXCEEDED"]
    details["full"] = {
        "answers": [f"{one['code']}: {one['details']}" for one in answers],
        "message_mib": message_mib,
        "before_mib": watch.before_mib,
        "peak_mib": watch.peak_mib,
        "max_queue_mib": MAX_QUEUE_BYTES / 2**20 if bounded else None,
        "killed": watch.has_killed,
    }
    per_group = held / max(1, len(waited))
    bound = MAX_QUEUE_BYTES / 2**20
    return (
        Figure(what=f"groups of {message_mib:.0f} MiB that waited", value=len(waited)),
        Figure(what="memory of each that waited", value=per_group, unit="MiB", old="370 MiB for 60 MiB"),
        Figure(what="server grew by, once they wait", value=held, unit="MiB",
               wanted=f"<= {bound:.0f}: {QUEUE_BYTES}", is_met=bounded and held <= bound),
        # One message is read beside those that wait.
        Figure(what="and at most, while messages were read", value=watch.grown_mib, unit="MiB",
               wanted=f"<= {bound + message_mib:.0f}: and a message",
               is_met=bounded and watch.grown_mib <= bound + message_mib),
    )  # fmt: skip


SCENARIO = Scenario(
    name="streams", about="a stream that nobody reads; memory of a queue full of 60 MiB groups", run=run
)
