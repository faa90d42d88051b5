"""The service bench at a small scale: what it wants of a shared service, as tests. make test-service"""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.service.results import table
from bench.service.room import Room
from bench.service.scenarios import SCENARIOS
from bench.service.trees import this_tree

pytestmark = [pytest.mark.service, pytest.mark.timeout(1800)]

SIZES = {
    "flood": Room(folder=Path(), tree=this_tree(), scale=0.25, num_processes=16),
    "large": Room(folder=Path(), tree=this_tree(), minutes=2),
    "fairness": Room(folder=Path(), tree=this_tree(), minutes=0.4),
    "bad_groups": Room(folder=Path(), tree=this_tree()),
    "malformed": Room(folder=Path(), tree=this_tree(), minutes=1, scale=0.02),
    "connections": Room(folder=Path(), tree=this_tree()),
    "streams": Room(folder=Path(), tree=this_tree(), scale=0.5),
    "trainers": Room(folder=Path(), tree=this_tree(), minutes=1, num_processes=16),
    "access": Room(folder=Path(), tree=this_tree(), scale=0.5),
    "two_teachers": Room(folder=Path(), tree=this_tree(), minutes=0.5),
    "faults": Room(folder=Path(), tree=this_tree(), minutes=1, scale=0.1),
}


@pytest.mark.parametrize("name", SIZES)
def test_a_shared_service_keeps_its_promises(name: str, tmp_path: Path) -> None:
    size = SIZES[name]
    folder = tmp_path / name
    folder.mkdir()
    room = Room(folder=folder, tree=size.tree, minutes=size.minutes, scale=size.scale, num_processes=size.num_processes)
    result = SCENARIOS[name].run(room)
    if not result.figures:
        pytest.skip(result.skipped)
    assert result.is_met, table([result])


def test_every_scenario_but_the_timing_of_two_trees_is_tested() -> None:
    assert SIZES.keys() == SCENARIOS.keys() - {"cost"}
