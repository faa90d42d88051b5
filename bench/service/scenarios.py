"""The scenarios by name, in the order in which they run."""

from __future__ import annotations

from bench.service import (
    access,
    bad_groups,
    connections,
    cost,
    fairness,
    faults,
    flood,
    large_messages,
    malformed,
    streams,
    trainers,
    two_teachers,
)
from bench.service.room import Scenario

SCENARIOS: dict[str, Scenario] = {
    one.SCENARIO.name: one.SCENARIO
    for one in (
        flood,
        large_messages,
        fairness,
        bad_groups,
        malformed,
        connections,
        streams,
        trainers,
        access,
        two_teachers,
        faults,
        cost,
    )
}
