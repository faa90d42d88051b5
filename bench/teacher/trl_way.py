"""TRL's client of vLLM, asked as TRL's trainer asks it: every sequence whole, all in one request."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from bench.teacher.outcome import Outcome
from bench.teacher.servers import RunningServer
from bench.teacher.workloads import Job


class TrlWay:
    """`get_sequence_logprobs` of TRL's VLLMClient."""

    def __init__(self, server: RunningServer) -> None:
        self._url = f"http://{server.address}"
        self.command = server.command
        self.tree = server.tree

    def run(self, job: Job) -> Outcome:
        from trl.generation.vllm_client import VLLMClient

        sequences, prompt_lengths = sequences_of(job)
        client = VLLMClient(base_url=self._url)  # connects
        weights: list[int] = []

        def weigh(answer: Any, **_: Any) -> None:  # Any: of requests, which has no types here
            weights.append(len(answer.content))

        client.session.hooks["response"].append(weigh)
        started = time.perf_counter()
        answer = client.get_sequence_logprobs(
            sequences=sequences, prompt_lengths=prompt_lengths, top_logprobs=job.top_k, temperature=1.0
        )
        seconds = time.perf_counter() - started
        client.session.close()
        sampled = np.array([logprob for one in answer["actual_logprobs"] for [logprob] in one])
        return Outcome(
            seconds=seconds,
            latencies=[seconds],
            num_positions=len(sampled),
            reply_bytes=sum(weights),
            mean_sampled_logprob=float(sampled.mean()),
        )


def sequences_of(job: Job) -> tuple[list[list[int]], list[int]]:
    """Prompt and response of each sequence in one list of ids, and how long each prompt is."""
    groups = job.groups()
    sequences = [[*group.prompt_ids.tolist(), *response.tolist()] for group in groups for response in group.responses]
    prompt_lengths = [len(group.prompt_ids) for group in groups for _ in group.responses]
    return sequences, prompt_lengths
