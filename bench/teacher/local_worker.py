"""Ways without a socket, in a process of their own: python -m bench.teacher.local_worker bare|hf MODEL DTYPE

bench.teacher.local asks it. bare: the model's backbone over every sequence, prompt and response, without the head; what
is shared is computed again, and the sequences of a workload are equally long, so nothing is padding. hf: the hf engine
behind the server's scheduler.
"""

# B = sequences of a batch, S = tokens of a sequence

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Callable
from dataclasses import asdict

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import torch
from preceptor_server.callers import Caller
from preceptor_server.config import SchedulerConfig
from preceptor_server.engines.config import HfConfig
from preceptor_server.engines.hf.engine import HfEngine
from preceptor_server.scheduling.scheduler import Scheduler
from preceptor_server.tenants.tenant import Tenant
from preceptor_server.types import ResponseToScore, ScoredGroup, ScoreGroup
from transformers import AutoModel

from bench.teacher.outcome import Outcome, RequestTimes, shares_of
from bench.teacher.workloads import Group, Job
from bench.workers import Request, serve

_CALLER = Caller(tenant=Tenant(name="bench"), name="bench", transport="grpc")
BATCH_TOKENS = 2048
"""Of a bare forward: where the rate no longer grows with the batch on two cores."""


class BareBackbone:
    """Measures the forward that every way needs at least."""

    def __init__(self, model: str, dtype: str) -> None:
        self._model = AutoModel.from_pretrained(model, dtype=getattr(torch, dtype)).eval()

    def __call__(self, job: Job) -> Outcome:
        sequences = [
            np.concatenate([group.prompt_ids, response]) for group in job.groups() for response in group.responses
        ]
        ids_BS = torch.from_numpy(np.stack(sequences))
        num_rows = max(1, BATCH_TOKENS // ids_BS.shape[1])
        latencies = []
        started = time.perf_counter()
        with torch.inference_mode():
            for batch_BS in torch.split(ids_BS, num_rows):
                batch_started = time.perf_counter()
                self._model(input_ids=batch_BS, use_cache=False)
                latencies.append(time.perf_counter() - batch_started)
        seconds = time.perf_counter() - started
        return Outcome(seconds=seconds, latencies=latencies, num_positions=job.shape.num_positions)


class HfInProcess:
    """Measures the engine and the scheduler."""

    def __init__(self, model: str, dtype: str) -> None:
        config = HfConfig.model_validate({"model": model, "dtype": dtype, "head_dtype": "model"})
        self._engine = HfEngine(config)
        self._engine.load()

    def __call__(self, job: Job) -> Outcome:
        return asyncio.run(self._measure(job))

    async def _measure(self, job: Job) -> Outcome:
        scheduler = Scheduler(self._engine, SchedulerConfig())
        scheduler.start()
        groups = [to_score_group(group, job.top_k) for group in job.groups()]
        started = time.perf_counter()
        answers = await asyncio.gather(*(self._score(scheduler, group) for group in groups))
        seconds = time.perf_counter() - started
        await scheduler.stop()
        sampled = np.concatenate([one.sampled_logprobs_N for scored, _ in answers for one in scored.columns])
        return Outcome(
            seconds=seconds,
            latencies=[latency for _, latency in answers],
            num_positions=len(sampled),
            mean_sampled_logprob=float(sampled.mean()),
            stage_shares=shares_of([times_of(scored, latency) for scored, latency in answers]),
        )

    async def _score(self, scheduler: Scheduler, group: ScoreGroup) -> tuple[ScoredGroup, float]:
        started = time.perf_counter()
        scored = await scheduler.score(group, caller=_CALLER)
        return scored, time.perf_counter() - started


def to_score_group(group: Group, top_k: int) -> ScoreGroup:
    """As the server's edge makes it."""
    responses = tuple(ResponseToScore(ids_T=ids, score_mask_T=np.ones(len(ids), np.bool_)) for ids in group.responses)
    return ScoreGroup(prompt_ids_P=group.prompt_ids, responses=responses, top_k=top_k, temperature=1.0)


def times_of(scored: ScoredGroup, latency: float) -> RequestTimes:
    """Nothing is decoded, and nobody is at the other end of a wire."""
    queue, forward = scored.queue_ms / 1000, scored.forward_ms / 1000
    return RequestTimes(latency=latency, decode=0, queue=queue, forward=forward, server=latency)


def main() -> int:
    """Answers jobs until standard input ends."""
    way, model, dtype = sys.argv[1:]
    kinds: dict[str, Callable[[str, str], Callable[[Job], Outcome]]] = {"bare": BareBackbone, "hf": HfInProcess}

    def prepare() -> Callable[[Request], dict[str, object]]:
        measure = kinds[way](model, dtype)
        return lambda request: asdict(measure(Job.from_json(str(request["job"]))))

    serve(prepare)
    return 0


if __name__ == "__main__":
    sys.exit(main())
