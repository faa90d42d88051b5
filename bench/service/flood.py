"""Row 1: many channels, many calls each, all at once. None may be lost."""

from __future__ import annotations

from dataclasses import asdict

from bench.service.engines import Fake
from bench.service.ledger import balance
from bench.service.loads import Load, ledger_files, messages_of, outcomes_of, percentile, run_loads
from bench.service.results import Figure, Result
from bench.service.room import Room, Scenario
from bench.service.servers import Watch

NUM_CHANNELS, CALLS_PER_CHANNEL = 64, 64
TEACHER = Fake(seconds_per_token=5e-5)


def run(room: Room) -> Result:
    num_processes = min(room.num_processes, NUM_CHANNELS)
    calls = room.count(CALLS_PER_CHANNEL)
    ledgers = ledger_files(room.folder, num_processes)
    with room.server(TEACHER) as server, Watch(server) as watch:
        loads = [
            Load(
                address=server.address,
                kind="burst",
                caller=f"flood-{index}",
                num_channels=NUM_CHANNELS // num_processes,
                concurrency=calls,
                ledger=ledger,
                seed=index,
            )
            for index, ledger in enumerate(ledgers)
        ]
        reports = run_loads(loads, tree=room.tree)
    kept = balance(ledgers)
    latencies = [seconds for one in reports for seconds in one.latencies()]
    return Result(
        scenario=SCENARIO.name,
        figures=(
            Figure(what="calls at once", value=kept.num_sent, wanted="4,096 from 64 channels"),
            Figure(
                what="groups lost",
                value=kept.num_lost,
                old="up to 702 of 1,024 of a process",
                wanted="0",
                is_met=kept.num_lost == 0,
            ),
            Figure(what="ledger: twice, or unknown", value=kept.num_twice + kept.num_unknown, wanted="0",
                   is_met=kept.num_twice + kept.num_unknown == 0),
            Figure(what="last answer", value=percentile(latencies, 100), unit="s"),
            Figure(what="server grew by", value=watch.grown_mib, unit="MiB"),
        ),
        details={
            "ledger": asdict(kept),
            "processes": num_processes,
            "channels": NUM_CHANNELS // num_processes * num_processes,
            "outcomes": outcomes_of(reports),
            "messages": messages_of(reports),
            "worst_process": max(one.num_failed for one in reports),
            "retries": sum(one.num_retries for one in reports),
            "client_mib": max(one.resident_mib for one in reports),
        },
    )  # fmt: skip


SCENARIO = Scenario(name="flood", about="4,096 calls at once from 64 channels; none lost, by a ledger of ids", run=run)
