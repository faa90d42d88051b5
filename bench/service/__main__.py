"""Load and faults against a shared teacher service, on this machine: python -m bench.service [scenario ...]

Everything is a real process: preceptor-server with the fake engine (which waits instead of computing, so that who is
served when does not depend on how busy the machine is) or the hf engine on a tiny random model, and clients that use
preceptor_client. Each scenario is a row of issue 15. Its result is saved as JSON when it ends, so that a run that was
cut short continues where it was (--again measures anew). Waits are judged in batch times, throughput in ratios of one
run.

Scenarios:
{scenarios}
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from bench.machine import describe_machine
from bench.service.results import Result, table
from bench.service.room import Room, Scenario
from bench.service.scenarios import SCENARIOS
from bench.service.trees import Tree, this_tree, tree_of


def parser() -> argparse.ArgumentParser:
    about = "\n".join(f"  {one.name:12} {one.about}" for one in SCENARIOS.values())
    parser = argparse.ArgumentParser(
        prog="python -m bench.service",
        description=(__doc__ or "").replace("{scenarios}", about),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("scenario", nargs="*", help="which to run; default: all", metavar="scenario")
    parser.add_argument("--minutes", type=float, default=5.0, help="at most, for the long part of each (default: 5)")
    parser.add_argument("--scale", type=float, default=1.0, help="factor on calls, messages and faults (default: 1)")
    parser.add_argument("--processes", type=int, default=64, help="most client processes at once (default: 64)")
    parser.add_argument("--out", type=Path, default=Path("runs/service"), help="folder of the JSON and of the logs")
    parser.add_argument("--commit", help="test the server and the client of this commit, not of this tree")
    parser.add_argument("--other", help="commit to compare with, for the scenarios that compare", default="7d58a24")
    parser.add_argument("--again", action="store_true", help="also run what has a result in --out")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the table; 1 where something that is wanted is not met."""
    options = parser().parse_args(arguments)
    if unknown := [name for name in options.scenario if name not in SCENARIOS]:
        raise SystemExit(f"unknown scenario {unknown[0]!r}: choose from {', '.join(SCENARIOS)}")
    out: Path = options.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    results: list[Result] = []
    with tempfile.TemporaryDirectory() as scratch:
        trees = [this_tree() if one is None else tree_of(one, Path(scratch) / one) for one in _commits(options)]
        for name in options.scenario or SCENARIOS:
            path = out / f"{name}.json"
            if path.exists() and not options.again:
                results.append(Result.load(path))
                continue
            print(f"{name}: {SCENARIOS[name].about}", file=sys.stderr, flush=True)
            results.append(_run(SCENARIOS[name], out, trees, options))
            results[-1].save(out)
    print(table(results))
    return 0 if all(one.is_met for one in results) else 1


def _commits(options: argparse.Namespace) -> tuple[str | None, str | None]:
    return options.commit, options.other


def _run(scenario: Scenario, out: Path, trees: Sequence[Tree], options: argparse.Namespace) -> Result:
    tree, other = trees
    folder = out / scenario.name
    folder.mkdir(exist_ok=True)
    if options.again:
        shutil.rmtree(folder / "parts", ignore_errors=True)
    room = Room(
        folder=folder,
        tree=tree,
        other=other,
        minutes=options.minutes,
        scale=options.scale,
        num_processes=options.processes,
    )
    started = time.monotonic()
    result = scenario.run(room)
    return replace(
        result,
        seconds=round(time.monotonic() - started, 1),
        tree=tree.name,
        machine=describe_machine("torch", "transformers", "grpcio", "protobuf"),
        command=shlex.join(["python", "-m", "bench.service", *sys.argv[1:]]),
    )


if __name__ == "__main__":
    sys.exit(main())
