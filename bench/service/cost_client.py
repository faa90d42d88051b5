"""A process that scores a workload of bench.teacher, as a trainer does: python -m bench.service.cost_client."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from typing import Any

from preceptor_client import TeacherClient, TeacherIds

from bench.teacher.workloads import Job
from bench.workers import Request, serve

TIMEOUT_SECONDS = 600.0


async def score(address: str, job: Job) -> dict[str, float]:
    """All groups at once. Seconds, and positions that were answered."""
    groups = job.groups()
    async with TeacherClient(address, timeout_seconds=TIMEOUT_SECONDS) as client:
        await client.info()  # connects
        started = time.perf_counter()
        answers = await asyncio.gather(
            *(client.score(TeacherIds(one.prompt_ids), list(one.responses), top_k=job.top_k) for one in groups)
        )
        seconds = time.perf_counter() - started
    positions = [one for scores in answers for one in scores.responses]
    return {
        "seconds": seconds,
        "num_positions": sum(len(one.sampled_logprobs_N) for one in positions),
        "sum_logprobs": float(sum(one.sampled_logprobs_N.sum() for one in positions)),
    }


def prepare() -> Any:  # Any: what bench.workers.serve calls
    def answer(request: Request) -> Mapping[str, object]:
        return asyncio.run(score(str(request["address"]), Job.from_json(str(request["job"]))))

    return answer


if __name__ == "__main__":
    serve(prepare)
