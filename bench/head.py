"""The sparse head against the dense one and against two libraries, side by side: python -m bench.head

Forward and backward of a mean loss, with gradients to the hidden states and to the output matrix, in fp32, at N = 4,096
positions, V = 49,152, d = 576, K = 32, unless told otherwise. Every way has a process of its own; they run in
interleaved rounds, medians. Memory is what the process grew by at its largest, without the matrix's own gradient, which
every way has to make; `torch` is what torch held at once, counted in the same manner.

Then the normaliser against a dense log-sum-exp, the largest differences to the dense way, and sweeps over N, K and V,
drawn to docs/figures/head_scaling.svg: 10 minutes in all. TRL, Liger and matplotlib are optional: where one is missing,
a line says how to install it. On a GPU (--device cuda) memory is what torch held there.

Exit status 1 where the sparse way is less than 15 times as fast as the dense one, needs more than a twentieth of its
memory, or differs from it by more than 1e-5; other sizes, dtypes and devices have neither targets nor sweeps.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
from contextlib import ExitStack
from dataclasses import asdict, fields
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # one process per way: those that wait must not spin

import torch

from bench.head_case import Case, inputs_of
from bench.head_scaling import Point, measure_scaling
from bench.head_ways import LOG_PARTITION_WAYS, WAYS, Way
from bench.head_worker import gradients
from bench.machine import describe_machine
from bench.plots import FIGURES, INSTALL, draw_scaling, is_available
from bench.workers import Worker, WorkerFailedError

ROUNDS = 3
MIN_SPEEDUP = 15.0
MIN_MEMORY_RATIO = 20.0
MAX_DIFFERENCE = 1e-5
MB = 1 << 20
SPARSE, DENSE = list(WAYS)[:2]

Row = dict[str, float | str]


def measure_ways(ways: dict[str, Way], case: Case, *, rounds: int) -> dict[str, Row]:
    """Seconds, memory and loss by way, or the reason why there are none."""
    rows: dict[str, Row] = {name: {"computes": way.computes} for name, way in ways.items()}
    with ExitStack() as stack:
        workers: dict[str, Worker] = {}
        for name in ways:
            note(f"memory of {name}")
            worker = stack.enter_context(Worker("bench.head_worker", name, case.to_json()))
            try:
                rows[name]["resident_mb"] = (worker.ask(measure="resident")["bytes"] - case.weight_bytes) / MB
                workers[name] = worker
            except WorkerFailedError as error:
                rows[name]["failed"] = str(error)
        times: dict[str, list[float]] = {name: [] for name in workers}
        for number in range(1, rounds + 1):
            note(f"round {number} of {rounds}")
            for name, worker in workers.items():
                answer = worker.ask(measure="seconds")
                times[name].append(answer["seconds"])
                rows[name]["loss"] = answer["loss"]
        for name, worker in workers.items():  # last: the profiler stays in a process
            rows[name]["torch_mb"] = (worker.ask(measure="torch")["bytes"] - case.weight_bytes) / MB
    for name, seconds in times.items():
        rows[name]["seconds"] = statistics.median(seconds)
    return rows


def differences(ways: dict[str, Way], case: Case) -> dict[str, float]:
    """Largest difference of the first way to the second by what it is of, as a share of the second's largest number."""
    inputs = inputs_of(case)
    ours, theirs = (gradients(way, inputs) for way in list(ways.values())[:2])
    names = ("loss", "gradient to hidden states", "gradient to matrix")
    return {
        name: float((a - b).abs().max() / b.abs().max()) for name, a, b in zip(names, ours, theirs, strict=True)
    }  # fmt: skip


def print_rows(rows: dict[str, Row], *, reference: str) -> None:
    """`reference` is the way that the others are compared with."""
    print(f"{'forward + backward':26} {'seconds':>8} {'faster':>7} {'MB':>7} {'less':>7} {'torch MB':>9}   computes")
    dense = rows[reference]
    for name, row in rows.items():
        if "failed" in row:
            print(f"{name:26} {row['failed']}   ({row['computes']})")
            continue
        speed, memory = ratio(dense, row, "seconds"), ratio(dense, row, "resident_mb")
        print(
            f"{name:26} {row['seconds']:8.4f} {speed:6.1f}x {row['resident_mb']:7.0f} {memory:6.1f}x "
            f"{row['torch_mb']:9.0f}   {row['computes']}"
        )


def note(text: str) -> None:
    """Minutes pass between the tables."""
    print(f"... {text}", file=sys.stderr, flush=True)


def ratio(reference: Row, row: Row, field: str) -> float:
    return float(reference[field]) / float(row[field])


def print_point(point: Point) -> None:
    text = f"{point.sweep:16} {point.size:8,} {point.way:16}"
    if point.seconds is None or point.resident_bytes is None:
        print(f"{text} left out: it would need more than 6 GiB")
    else:
        print(f"{text} {point.seconds:8.3f} s {point.resident_bytes / MB:7.0f} MB")


def verdicts(rows: dict[str, Row], largest: dict[str, dict[str, float]]) -> list[tuple[bool, str]]:
    """Whether each target is met, and the figure."""
    sparse, dense = rows[SPARSE], rows[DENSE]
    speed, memory = ratio(dense, sparse, "seconds"), ratio(dense, sparse, "resident_mb")
    worst = max(value for values in largest.values() for value in values.values())
    return [
        (speed >= MIN_SPEEDUP, f"{speed:.1f} times as fast as the dense way; the target is {MIN_SPEEDUP:.0f}"),
        (memory >= MIN_MEMORY_RATIO, f"{memory:.1f} times less memory; the target is {MIN_MEMORY_RATIO:.0f}"),
        (worst <= MAX_DIFFERENCE, f"largest difference to the dense ways {worst:.1e}; the limit is {MAX_DIFFERENCE}"),
    ]


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.head", description="The sparse head, measured.")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="interleaved rounds of the table (default 3)")
    parser.add_argument("--no-scaling", action="store_true", help="leave the sweeps over N, K and V out")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where all ways run")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="of states and matrix")
    for field in ("num_positions", "support_size", "vocabulary_size", "hidden_size"):
        parser.add_argument(f"--{field.replace('_', '-')}", type=int, default=getattr(Case(), field))
    parser.add_argument("--json", type=Path, help="also write the figures to this file, for python -m bench.plots")
    arguments = parser.parse_args()
    if arguments.rounds < 1:
        parser.error("--rounds: at least 1")
    return arguments


def main() -> int:
    """Prints tables and verdicts, then all of it as JSON with the machine and the commit."""
    arguments = parse_arguments()
    case = Case(**{field.name: getattr(arguments, field.name) for field in fields(Case)})
    has_targets = case == Case()
    rows: dict[str, Row] = {}
    largest: dict[str, dict[str, float]] = {}
    for ways in (WAYS, LOG_PARTITION_WAYS):
        name, reference = list(ways)[:2]
        measured = measure_ways(ways, case, rounds=arguments.rounds)
        print_rows(measured, reference=reference)
        rows |= measured
        largest[name] = differences(ways, case)
        print("largest relative difference of the first to the second:", end=" ")
        print(", ".join(f"{what} {value:.1e}" for what, value in largest[name].items()), end="\n\n")
    points = []
    for point in [] if arguments.no_scaling or not has_targets else measure_scaling(SPARSE, DENSE):
        print_point(point)
        points.append(asdict(point))
    results = {
        "machine": describe_machine("torch", "trl", "liger-kernel"),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if case.device == "cuda" else None,
        "case": asdict(case),
        "ways": rows,
        "differences": largest,
        "scaling": points,
    }
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=2) + "\n")
    if points:
        print(f"drawn to {draw_scaling(results)}" if is_available() else f"not drawn to {FIGURES}: {INSTALL}")
    outcome = verdicts(rows, largest) if has_targets else []
    for is_met, text in outcome:
        print(f"{'ok  ' if is_met else 'FAIL'} {text}")
    print(json.dumps(results))
    return 0 if all(is_met for is_met, _ in outcome) else 1


if __name__ == "__main__":
    sys.exit(main())
