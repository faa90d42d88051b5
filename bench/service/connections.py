"""Row 11: more connections than the server may open files."""

from __future__ import annotations

import socket
import time
import urllib.error
import urllib.request
from contextlib import ExitStack

from bench.service.engines import Fake
from bench.service.loads import Load, messages_of, outcomes_of, run_loads
from bench.service.results import Figure, Result
from bench.service.room import Room, Scenario
from bench.service.servers import MIB, Server

MAX_OPEN_FILES, NUM_CONNECTIONS = 512, 1500
HOLD_SECONDS = 10.0
MAX_LOG_MIB = 500.0
MAX_LOG_BYTES = 100_000


def run(room: Room) -> Result:
    with room.server(Fake(), with_http=True, max_open_files=MAX_OPEN_FILES) as server:
        before = server.log_bytes()
        with ExitStack() as stack:
            opened = _open(server, stack)
            http, held = _hold(server)
            log_bytes, log_lines = server.log_bytes() - before, server.log_lines()
            healthy = server.is_alive()
        if log_bytes < MAX_LOG_MIB * MIB and healthy:
            time.sleep(2.0)
            after = run_loads([Load(address=server.address, kind="burst", timeout_seconds=20)], tree=room.tree)
        else:
            after = []
    if log_bytes > MIB:  # what it says is in its beginning
        with server.log.open("r+b") as log:
            log.truncate(MIB)
    return Result(
        scenario=SCENARIO.name,
        figures=(
            Figure(what="connections opened", value=opened, wanted=f"{NUM_CONNECTIONS}, of {MAX_OPEN_FILES} files"),
            Figure(what=f"log in {held:.0f} s", value=log_bytes / MIB, unit="MiB", old="265 MB in seconds",
                   wanted="told once", is_met=log_bytes <= MAX_LOG_BYTES),
            Figure(what="lines of log", value=log_lines, old="3.5 million"),
            Figure(what="HTTP answered meanwhile", value=http, old="deaf", wanted="yes", is_met=http == "yes"),
            Figure(what="a gRPC call afterwards", value="answered" if after and after[0].num_ok else "failed",
                   wanted="answered", is_met=bool(after and after[0].num_ok)),
        ),
        details={"after": outcomes_of(after), "messages": messages_of(after), "held_seconds": held},
    )  # fmt: skip


def _open(server: Server, stack: ExitStack) -> int:
    """As many connections as it takes, without a word; returns how many stand on our side."""
    host, _, port = server.address.rpartition(":")
    count = 0
    for _ in range(NUM_CONNECTIONS):
        try:
            stack.enter_context(socket.create_connection((host, int(port)), timeout=1.0))
        except OSError:  # refused, or the backlog is full: enough
            break
        count += 1
    return count


def _hold(server: Server) -> tuple[str, float]:
    """Asks over HTTP while the connections stand. Ends early where the log would fill the disk."""
    started, answers = time.monotonic(), []
    while (held := time.monotonic() - started) < HOLD_SECONDS:
        if server.log_bytes() > MAX_LOG_MIB * MIB:
            break
        try:
            with urllib.request.urlopen(f"{server.http_url}/healthz", timeout=2) as answer:
                answers.append(answer.status == 200)
        except (urllib.error.URLError, OSError):
            answers.append(False)
        time.sleep(0.2)
    return ("yes" if answers and all(answers) else f"{sum(answers)} of {len(answers)}"), held


SCENARIO = Scenario(
    name="connections", about="more connections than ulimit -n: the log, and whether HTTP answers", run=run
)
