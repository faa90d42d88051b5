"""Row 9: one group makes the engine raise. Who else fails?"""

from __future__ import annotations

from bench.service.engines import BAD_TOKEN, Fake
from bench.service.ledger import balance
from bench.service.loads import Load, Shape, ledger_files, messages_of, outcomes_of, run_loads
from bench.service.results import Figure, Result
from bench.service.room import Room, Scenario

NUM_INNOCENTS, GROUPS_PER_INNOCENT, LOOPS = 8, 40, 2
TEACHER = Fake(seconds_per_token=1e-4, raises_on_bad_token=True)
SHAPE = Shape(prompt=32, num_responses=4, response=48)
CULPRITS_PER_SECOND = 1.0


def run(room: Room) -> Result:
    """Innocents have two groups waiting each, a culprit comes with another bad group each second meanwhile."""
    groups = room.count(GROUPS_PER_INNOCENT)
    ledgers = ledger_files(room.folder, NUM_INNOCENTS)
    with room.server(TEACHER) as server:
        innocents = [
            Load(
                address=server.address,
                kind="closed",
                caller=f"innocent-{index}",
                concurrency=LOOPS,
                shape=SHAPE,
                num_groups=groups // LOOPS,
                seconds=600.0,
                ledger=ledger,
                seed=index,
            )
            for index, ledger in enumerate(ledgers)
        ]
        culprit = Load(
            address=server.address,
            kind="open",
            caller="culprit",
            shape=SHAPE,
            per_second=CULPRITS_PER_SECOND,
            seconds=groups * NUM_INNOCENTS * SHAPE.num_tokens * TEACHER.seconds_per_token,
            bad_token=BAD_TOKEN,
            seed=99,
        )
        *reports, guilty = run_loads([*innocents, culprit], tree=room.tree)
        lines = server.log_lines()
    kept = balance(ledgers)
    failed = sum(one.num_failed for one in reports)
    return Result(
        scenario=SCENARIO.name,
        figures=(
            Figure(what="bad groups sent", value=sum(guilty.outcomes.values())),
            Figure(what="innocent groups sent", value=kept.num_sent, old="320"),
            Figure(what="innocent groups that failed", value=failed, old="41", wanted="0", is_met=failed == 0),
            Figure(what="bad groups that were answered", value=guilty.num_ok, wanted="0", is_met=guilty.num_ok == 0),
        ),
        details={
            "innocents": outcomes_of(reports),
            "culprit": dict(guilty.outcomes),
            "messages": messages_of([*reports, guilty]),
            "log_lines": lines,
        },
    )


SCENARIO = Scenario(name="bad_groups", about="an engine that raises on one group: how many innocent ones fail", run=run)
