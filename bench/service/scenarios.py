"""The scenarios by name, in the order in which they run."""

from __future__ import annotations

from bench.service import bad_groups, connections, fairness, flood, large_messages, malformed
from bench.service.room import Scenario

SCENARIOS: dict[str, Scenario] = {
    one.SCENARIO.name: one.SCENARIO for one in (flood, large_messages, fairness, bad_groups, malformed, connections)
}
