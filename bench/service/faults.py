"""Four small runs go on while their teacher, their network or their disk fails. Each must end with the same losses."""

from __future__ import annotations

import random
import time
from typing import Any

from bench.service.fault_stages import FAULTS, Stage, how, undisturbed, why_not
from bench.service.results import Figure, Result
from bench.service.room import Room, Scenario
from bench.service.runs import Run, differences, finish, load_losses, make_runs, restart_failed, save_losses

NUM_STRIKES = 20
NUM_STEPS = 24
LONGEST_WAIT = 6.0
"""Seconds between two strikes, at most."""
FINISH_SECONDS = 600.0
Losses = list[dict[int, set[float]]]


def run(room: Room) -> Result:
    figures: list[Figure] = []
    details: dict[str, Any] = {}  # Any: JSON
    skipped = []
    expected = _undisturbed(room)
    for index, name in enumerate(FAULTS):
        if reason := why_not(name, room):
            skipped.append(f"{name}: {reason}")
            continue

        def measure(name: str = name, seed: int = index) -> dict[str, Any]:  # Any: JSON
            return _disturbed(room, name, expected, seed=seed)

        details[name] = found = room.part(name, measure)
        is_met = not found["differences"] and found["num_runs"] > 0
        figures += [
            Figure(what=f"{name}: times", value=found["num_strikes"], wanted=str(room.count(NUM_STRIKES))),
            Figure(what=f"{name}: runs with other losses", value=f"{len(found['differences'])} of {found['num_runs']}",
                   wanted="0", is_met=is_met),
            Figure(what=f"{name}: runs that were begun anew", value=found["num_restarts"]),
        ]  # fmt: skip
    return Result(scenario=SCENARIO.name, figures=tuple(figures), details=details, skipped="; ".join(skipped))


def _undisturbed(room: Room) -> Losses:
    """Measured once and kept: the runs are reproducible."""
    kept = room.folder / f"losses-{room.tree.name.replace(' ', '-')}.json"
    if kept.exists():
        return load_losses(kept)
    with undisturbed(room) as stage:
        runs = _runs(room, stage, "undisturbed")
        finish(runs, seconds=FINISH_SECONDS)
    losses = [one.losses() for one in runs]
    for one, noted in zip(runs, losses, strict=True):
        assert len(noted) == NUM_STEPS, f"without faults {one.name} has {len(noted)} steps: {one.last_words()}"
    save_losses(kept, losses)
    return losses


def _runs(room: Room, stage: Stage, name: str) -> list[Run]:
    runs = make_runs(
        room.folder / name,
        student=_student(room),
        address=stage.address,
        num_steps=NUM_STEPS,
        tree=room.tree,
        prefix=stage.prefix,
        directory=None if stage.directory is None else stage.directory / name,
        max_restarts=NUM_STRIKES if stage.ends_runs else 3,
    )
    for one in runs:
        one.start()
    return runs


def _student(room: Room) -> Any:  # Any: a folder
    """Short contexts are enough, and another seed than the teacher's."""
    folder = room.folder.parent / "tiny-student"
    if not (folder / "config.json").exists():
        from tests.tiny import save_tiny, tiny_llama  # imports torch

        save_tiny(folder, tiny_llama(seed=1))
    return folder


def _disturbed(room: Room, name: str, expected: Losses, *, seed: int) -> dict[str, Any]:  # Any: JSON
    """Sets of four runs, one after the other, until the fault has struck often enough or the time is over."""
    rng = random.Random(seed)
    wanted, deadline = room.count(NUM_STRIKES), time.monotonic() + room.minutes * 60
    found: dict[str, Any] = {"how": how(name), "num_strikes": 0, "num_runs": 0, "num_restarts": 0, "differences": []}
    with FAULTS[name](room) as stage:
        sets = 0
        while found["num_strikes"] < wanted and time.monotonic() < deadline:
            runs = _runs(room, stage, f"{name.split()[0].lower()}-{seed}-{sets}-{time.time_ns()}")
            try:
                while restart_failed(runs) and found["num_strikes"] < wanted and time.monotonic() < deadline:
                    time.sleep(rng.uniform(0.0, LONGEST_WAIT))
                    if restart_failed(runs) and any(one.is_training() for one in runs):
                        stage.strike()
                        found["num_strikes"] += 1
                finish(runs, seconds=FINISH_SECONDS)
            finally:
                for one in runs:
                    one.kill()
            found["num_runs"] += len(runs)
            found["num_restarts"] += sum(one.num_restarts for one in runs)
            found["differences"] += differences(runs, expected)
            sets += 1
    return found


SCENARIO = Scenario(name="faults", about="seven faults, 20 times each, while four runs go on: the same losses", run=run)
