"""64 trainers for minutes at three times what the teacher can do: its memory, the ledger, its goodput."""

from __future__ import annotations

from dataclasses import asdict

from bench.service.engines import Fake
from bench.service.ledger import balance
from bench.service.loads import (
    Load,
    Report,
    Shape,
    client_processes,
    ledger_files,
    messages_of,
    now,
    outcomes_of,
    percentile,
)
from bench.service.results import Figure, Result
from bench.service.room import Room, Scenario
from bench.service.servers import Server, Watch
from bench.service.shares import jain

NUM_TRAINERS, OVERLOAD = 64, 3.0
TEACHER = Fake(seconds_per_token=1e-4)
GROUP = Shape(prompt=64, num_responses=4, response=48)
GROUPS_PER_STEP = 8
CAPACITY_LOOPS, CAPACITY_SECONDS = 32, 20.0
PATIENCE_SECONDS = 600.0
"""A trainer waits for its teacher."""
WARM_SHARE = 0.25
MIN_GOODPUT, MAX_GROWTH = 0.95, 1.05


def run(room: Room) -> Result:
    num_trainers = min(NUM_TRAINERS, room.num_processes)
    seconds = room.minutes * 60
    ledgers = ledger_files(room.folder, num_trainers)
    with room.server(TEACHER) as server:
        capacity = _capacity(room, server)
        loads = _trainers(server, ledgers, capacity=capacity, seconds=seconds)
        with client_processes(loads, tree=room.tree) as clients, Watch(server, every_seconds=0.5) as watch:
            began = now()
            reports = clients.go()()
        again = _capacity(room, server)
    since, until = began + WARM_SHARE * seconds, began + seconds
    done = [one.tokens_between(since, until) for one in reports]
    goodput = sum(done) / (until - since) / max(capacity, again)
    warm = [mib for at, mib in watch.samples if since <= at <= since + 0.1 * seconds]
    late = [mib for at, mib in watch.samples if since <= at <= until]
    growth = max(late) / percentile(warm, 50)
    kept = balance(ledgers)
    return Result(
        scenario=SCENARIO.name,
        figures=(
            Figure(what="trainers, each a process", value=num_trainers, wanted=str(NUM_TRAINERS)),
            Figure(what="for", value=seconds / 60, unit="minutes", wanted="5"),
            Figure(what="goodput, share of one client's at capacity", value=goodput, wanted=f">= {MIN_GOODPUT}",
                   is_met=goodput >= MIN_GOODPUT),
            Figure(what="server's memory, times what it was when warm", value=growth, wanted=f"<= {MAX_GROWTH}",
                   is_met=growth <= MAX_GROWTH),
            Figure(what="ledger: groups lost", value=kept.num_lost, wanted="0", is_met=kept.num_lost == 0),
            Figure(what="ledger: twice, or unknown", value=kept.num_twice + kept.num_unknown, wanted="0",
                   is_met=kept.num_twice + kept.num_unknown == 0),
            Figure(what="Jain over the trainers", value=jain(done)),
        ),
        details={
            "ledger": asdict(kept),
            "outcomes": outcomes_of(reports),
            "messages": messages_of(reports),
            "retries": sum(one.num_retries for one in reports),
            "capacity_tokens_per_second": [capacity, again],
            "wanted_tokens_per_second": OVERLOAD * capacity,
            "think_seconds": loads[0].think_seconds,
            "warm_mib": percentile(warm, 50),
            "peak_mib": max(late),
            "p50_seconds": _latency(reports, 50),
            "p99_seconds": _latency(reports, 99),
        },
    )  # fmt: skip


def _capacity(room: Room, server: Server) -> float:
    """Tokens a second of one client that always has enough waiting."""
    seconds = min(CAPACITY_SECONDS, room.minutes * 20)
    load = Load(
        address=server.address, kind="closed", shape=GROUP, concurrency=CAPACITY_LOOPS, seconds=seconds, seed=999
    )
    with client_processes([load], tree=room.tree) as clients:
        began = now()
        (report,) = clients.go()()
    since, until = began + WARM_SHARE * seconds, began + seconds
    return report.tokens_between(since, until) / (until - since)


def _trainers(server: Server, ledgers: list[str], *, capacity: float, seconds: float) -> list[Load]:
    """Each keeps GROUPS_PER_STEP loops: it thinks (its rollouts and its step), then asks, as often as makes all of them
    together ask for OVERLOAD times the capacity if answers came at once."""
    loops = len(ledgers) * GROUPS_PER_STEP
    return [
        Load(
            address=server.address,
            kind="closed",
            caller=f"trainer-{index}",
            shape=GROUP,
            concurrency=GROUPS_PER_STEP,
            think_seconds=loops * GROUP.num_tokens / (OVERLOAD * capacity),
            seconds=seconds,
            timeout_seconds=PATIENCE_SECONDS,
            ledger=ledger,
            seed=index,
        )
        for index, ledger in enumerate(ledgers)
    ]


def _latency(reports: list[Report], q: float) -> float:
    return percentile([seconds for one in reports for seconds in one.latencies()], q)


SCENARIO = Scenario(name="trainers", about="64 trainers at 3 times capacity: memory, ledger, goodput", run=run)
