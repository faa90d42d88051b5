"""Forward, loss and backward of a demo step before and after issue 4, side by side: python -m bench.train_step

Both read the same rollouts and teacher scores, made once: 16 responses of at most 16 tokens from SmolLM2-135M, fp32,
the teacher's K = 32 from the demo's prompt with five solved questions, micro_batch_size 16. "before" is the client of
commit 70b95bd, "now" this tree's, each in a process of its own; interleaved rounds, medians. Then the share of a step
that the instruments cost. Exit status 1 where now is not faster, the losses differ by more than 1e-4 (relative), or the
instruments take 3 % of a step or more.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TQDM_DISABLE", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # two processes take turns: the one that waits must not spin

from bench.machine import describe_machine
from bench.train_step_data import save_step
from bench.train_step_instruments import instrument_seconds
from bench.trees import unpack
from bench.workers import Answer, Worker

BEFORE = "70b95bd"
ROUNDS = 7
INSTRUMENT_ROUNDS = 3
MAX_DIFFERENCE = 1e-4
MAX_INSTRUMENT_SHARE = 0.03


def measure(folder: Path, step: Path) -> dict[str, Answer]:
    """Medians by tree."""
    module = "bench.train_step_worker"
    with (
        Worker(module, "before", str(step), paths=unpack(BEFORE, folder, packages=("client", "proto"))) as before,
        Worker(module, "now", str(step)) as now,
    ):
        answers: dict[str, list[Answer]] = {"before": [], "now": []}
        for _ in range(ROUNDS):
            for tree, worker in (("before", before), ("now", now)):
                answers[tree].append(worker.ask(measure="seconds"))
    return {
        tree: {name: statistics.median(answer[name] for answer in each) for name in each[0]}
        for tree, each in answers.items()
    }


def verdicts(trees: dict[str, Answer], instruments: dict[str, float]) -> list[tuple[bool, str]]:
    """Whether each target is met, and the figure."""
    before, now = trees["before"], trees["now"]
    ratio = before["seconds"] / now["seconds"]
    worst = max(abs(now[name] / before[name] - 1) for name in ("loss", "gradient_norm"))
    share = sum(seconds for name, seconds in instruments.items() if name != "step") / instruments["step"]
    return [
        (ratio > 1, f"now is {ratio:.2f} times as fast as before"),
        (
            worst <= MAX_DIFFERENCE,
            f"loss and norm of the gradient differ by {worst:.1e}; the limit is {MAX_DIFFERENCE}",
        ),
        (share < MAX_INSTRUMENT_SHARE, f"the instruments take {share:.2%} of a step; the limit is 3 %"),
    ]


def main() -> int:
    """Prints two tables and the verdicts, then the same as JSON with the machine and the commit."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        step = folder / "step.json"
        print(f"16 responses, {save_step(step)} positions")
        trees = measure(folder, step)
        instruments = instrument_seconds(step, rounds=INSTRUMENT_ROUNDS)
    print("forward, loss, backward   seconds        loss   norm of the gradient")
    for tree, answer in trees.items():
        print(f"{tree:24} {answer['seconds']:8.3f} {answer['loss']:11.6f} {answer['gradient_norm']:22.6f}")
    print("a step without its teacher, and in it  seconds")
    for part, seconds in instruments.items():
        print(f"{part:37} {seconds:8.4f}")
    outcome = verdicts(trees, instruments)
    for is_met, text in outcome:
        print(f"{'ok  ' if is_met else 'FAIL'} {text}")
    machine = describe_machine("torch", "transformers")
    print(json.dumps({"machine": machine, "before": BEFORE, "trees": trees, "instrument_seconds": instruments}))
    return 0 if all(is_met for is_met, _ in outcome) else 1


if __name__ == "__main__":
    sys.exit(main())
