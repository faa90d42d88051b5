"""The scenarios by name, in the order in which they run."""

from __future__ import annotations

from bench.service import (
    access,
    bad_groups,
    connections,
    fairness,
    faults,
    flood,
    large_messages,
    malformed,
    streams,
    trainers,
)
from bench.service.room import Scenario

SCENARIOS: dict[str, Scenario] = {
    one.SCENARIO.name: one.SCENARIO
    for one in (flood, large_messages, fairness, bad_groups, malformed, connections, streams, trainers, access, faults)
}
