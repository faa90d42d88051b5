"""Requests to vLLM that nobody waits for any more: python -m tests.vllm.giving_up MODEL prints what is left of them."""

from __future__ import annotations

import asyncio
import json
import sys
from collections import Counter
from dataclasses import replace

import numpy as np
import psutil
from preceptor_server.config import SchedulerConfig
from preceptor_server.engines.config import VllmConfig
from preceptor_server.engines.vllm.engine import VllmEngine
from preceptor_server.errors import DeadlinePassedError, QueueFullError
from preceptor_server.scheduling.scheduler import Scheduler
from preceptor_server.types import ScoreGroup

from tests.unit.server.callers import caller_of
from tests.unit.server.groups import random_batch
from tests.vllm.models import VOCABULARY_SIZE
from tests.vllm.serving import MAX_MODEL_LEN, engine_arguments

NUM_REQUESTS = 500
NUM_ROUNDS = 3


def random_groups() -> list[ScoreGroup]:
    rng = np.random.default_rng(7)
    batches = (random_batch(rng, vocabulary_size=VOCABULARY_SIZE) for _ in range(NUM_REQUESTS))
    return [replace(batch[0], top_k=8) for batch in batches]


async def give_up(scheduler: Scheduler, group: ScoreGroup, seed: int) -> str:
    """Asks; three in ten cancel within 0.2 s, as many have a deadline within 0.3 s."""
    dice = np.random.default_rng(seed)
    timeout = float(dice.uniform(0.001, 0.3)) if dice.random() < 0.3 else 300.0
    call = asyncio.create_task(scheduler.score(group, caller=caller_of(str(seed % 5)), timeout_seconds=timeout))
    await asyncio.sleep(float(dice.uniform(0, 0.2)))
    if dice.random() < 0.3:
        call.cancel()
    try:
        await call
    except asyncio.CancelledError:
        return "cancelled"
    except (DeadlinePassedError, QueueFullError):  # too late, or it could not have started in time
        return "late"
    return "answered"


async def main(model: str) -> None:
    # A cache that the first round fills: what memory grows by afterwards is not the cache.
    arguments = json.loads(engine_arguments(block_size=32, kv_cache_memory_bytes=16 << 20))
    engine = VllmEngine(VllmConfig(model=model, max_model_len=MAX_MODEL_LEN, path="fast", arguments=arguments))
    await asyncio.to_thread(engine.load)
    scheduler = Scheduler(engine, SchedulerConfig())
    scheduler.start()
    processes = [psutil.Process(), *psutil.Process().children(recursive=True)]
    outcomes: list[dict[str, int]] = []
    rss_bytes: list[int] = []
    for _ in range(NUM_ROUNDS):
        asked = (give_up(scheduler, group, seed) for seed, group in enumerate(random_groups()))
        outcomes.append(dict(Counter(await asyncio.gather(*asked))))
        rss_bytes.append(sum(process.memory_info().rss for process in processes))
    await asyncio.sleep(1)  # the engine lets go of the last ones a moment after their callers left
    llm = engine._loaded.llm
    found = {
        "num_requests": NUM_REQUESTS,
        "outcomes": outcomes,
        "rss_bytes": rss_bytes,
        "unfinished": llm.get_num_unfinished_requests(),
        "waiting": scheduler.num_waiting,
        "tokens_in_flight": scheduler.num_tokens_in_flight,
        "emptied_cache": await llm.reset_prefix_cache(),
    }
    await scheduler.stop()
    engine.close()
    print(json.dumps(found))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
