"""Two teachers in one server: one of them is drained and replaced under load. What do callers of the other notice?"""

from __future__ import annotations

import signal
import time
from dataclasses import replace

from bench.service.engines import Fake, Named, toml_of
from bench.service.loads import Load, Report, Shape, client_processes, now
from bench.service.results import Figure, Result
from bench.service.room import Room, Scenario

STAYS = Fake(seconds_per_token=1e-4)
GOES, COMES = Fake(seconds_per_token=1e-4, vocabulary_size=80), Fake(seconds_per_token=1e-4, vocabulary_size=96)
SHAPE = Shape(prompt=64, num_responses=4, response=64)
NUM_LOOPS, NUM_REPLACED = 12, 5
SECONDS = 60.0
MAX_BATCHES = 1.0


def run(room: Room) -> Result:
    if not room.tree.has_server_module("teachers"):
        return Result(scenario=SCENARIO.name, skipped="the server hosts one teacher: it has no [teachers.NAME]")
    file = room.folder / "server.toml"
    file.write_text(toml_of({"stays": STAYS, "other": GOES}, room.tree))
    seconds = min(SECONDS, room.minutes * 60)
    with room.server(Named(file=file)) as server:
        load = Load(
            address=server.address, kind="closed", caller="stays", teacher="stays", shape=SHAPE,
            concurrency=NUM_LOOPS, seconds=seconds,
        )  # fmt: skip
        loads = [load, replace(load, caller="other", teacher="other", seed=1)]
        with client_processes(loads, tree=room.tree) as clients:
            began = now()
            wait = clients.go()
            time.sleep(seconds / 3)
            quiet = now()
            for index in range(NUM_REPLACED):
                file.write_text(toml_of({"stays": STAYS, "other": (COMES, GOES)[index % 2]}, room.tree))
                server.process.send_signal(signal.SIGHUP)
                time.sleep(seconds / 2 / NUM_REPLACED)
            stays, other = wait()
    # The batch that a caller alone waits for: all its loops together.
    batch = SHAPE.num_tokens * NUM_LOOPS * STAYS.seconds_per_token
    slower = (_longest(stays, quiet, now()) - _longest(stays, began, quiet)) / batch
    return Result(
        scenario=SCENARIO.name,
        figures=(
            Figure(what="revisions of the replaced that answered", value=len(other.revisions), wanted="2",
                   is_met=len(other.revisions) == 2),
            Figure(what="groups of the other that failed", value=stays.num_failed, wanted="0",
                   is_met=stays.num_failed == 0),
            Figure(what="its slowest group, slower than before by", value=slower, unit="batches",
                   wanted=f"<= {MAX_BATCHES:g}", is_met=slower <= MAX_BATCHES),
            Figure(what="groups of the replaced that failed", value=other.num_failed, wanted="0",
                   is_met=other.num_failed == 0),
        ),
        details={
            "stays": dict(stays.outcomes),
            "other": dict(other.outcomes),
            "revisions": dict(other.revisions),
            "messages": dict(other.messages),
        },
    )  # fmt: skip


def _longest(report: Report, since: float, until: float) -> float:
    return max((one.seconds for one in report.samples if since <= one.ended < until), default=0.0)


SCENARIO = Scenario(
    name="two_teachers", about="two teachers in one server, one drained and replaced under load", run=run
)
