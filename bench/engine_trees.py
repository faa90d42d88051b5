"""The hf engine of another commit and of this tree, side by side: python -m bench.engine_trees 730636f

SmolLM2-135M in fp32, the workloads of bench.engine, each tree in a process of its own, interleaved rounds. The ratio is
the median of the rounds' own. Exit status 1 where this tree is more than 3 % slower on a workload, or their numbers
differ by more than rounding explains.
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

from bench.engine import smollm2_folder, workloads
from bench.machine import describe_machine
from bench.trees import unpack
from bench.workers import Answer, Worker

ROUNDS = 9
SLOWEST = 0.97
MAX_DIFFERENCE = 1e-5


def measure(commit: str, folder: Path) -> dict[str, list[tuple[Answer, Answer]]]:
    """Answers of both trees, before and now, by workload and round."""
    model = smollm2_folder()
    with (
        Worker("bench.engine_worker", model, paths=unpack(commit, folder, packages=("server", "proto"))) as before,
        Worker("bench.engine_worker", model) as now,
    ):
        names = list(workloads())
        for worker in (before, now):
            worker.ask(workload=names[0])  # warms up
        rounds: dict[str, list[tuple[Answer, Answer]]] = {name: [] for name in names}
        for index in range(ROUNDS):
            for name in names:
                pair = (before, now) if index % 2 == 0 else (now, before)
                first, second = (worker.ask(workload=name) for worker in pair)
                rounds[name].append((first, second) if index % 2 == 0 else (second, first))
        return rounds


def main() -> int:
    """Prints a table, then the same as JSON with the machine and the commit."""
    if len(sys.argv) != 2:
        raise SystemExit("usage: python -m bench.engine_trees COMMIT")
    with tempfile.TemporaryDirectory() as name:
        rounds = measure(sys.argv[1], Path(name))
    results: dict[str, dict[str, float]] = {}
    print(f"{'seconds, medians':36} {'before':>8} {'now':>8}   before/now (of the rounds)   sums differ by")
    for workload, pairs in rounds.items():
        ratios = sorted(before["seconds"] / now["seconds"] for before, now in pairs)
        medians = [statistics.median(pair[index]["seconds"] for pair in pairs) for index in (0, 1)]
        difference = max(abs(now["sum_logprobs"] / before["sum_logprobs"] - 1) for before, now in pairs)
        ratio = statistics.median(ratios)
        results[workload] = {"before": medians[0], "now": medians[1], "ratio": ratio, "difference": difference}
        spread = f"{ratio:.3f} ({ratios[0]:.3f} to {ratios[-1]:.3f})"
        print(f"{workload:36} {medians[0]:8.3f} {medians[1]:8.3f}   {spread:26}   {difference:.1e}")
    machine = describe_machine("torch", "transformers")
    print(json.dumps({"machine": machine, "before": sys.argv[1], "results": results}))
    is_met = all(one["ratio"] >= SLOWEST and one["difference"] <= MAX_DIFFERENCE for one in results.values())
    return 0 if is_met else 1


if __name__ == "__main__":
    sys.exit(main())
