"""What the queue costs for each group, and how full batches are: python -m bench.scheduling

Groups of random sizes wait, of 100 callers each of 10 tenants. For each that is taken another comes; beside it, the
same where as many come and leave before their turn. Processor time of one core.
"""

from __future__ import annotations

import argparse
import asyncio
import heapq
import json
import random
import statistics
import sys
import time

import numpy as np
from preceptor_server.callers import Caller
from preceptor_server.scheduling.batch_limit import BatchLimit
from preceptor_server.scheduling.batches import BatchTaker
from preceptor_server.scheduling.divisions import Divisions
from preceptor_server.scheduling.fair_queue import FairQueue
from preceptor_server.scheduling.job import Job
from preceptor_server.tenants.tenant import Tenant
from preceptor_server.types import ResponseToScore, ScoreGroup

from tests.engines.fake import FakeEngine

MAX_BATCH_TOKENS = 4096
NUM_TENANTS = 10
NUM_CALLERS = 100
ROUNDS = 5


class Bench:
    """A queue that is kept as long as it was."""

    def __init__(self, num_waiting: int, *, longest: int, leaves: bool) -> None:
        self._dice = random.Random(1)
        self._longest = longest
        self._leaves = leaves
        self._callers = [
            Caller(tenant=Tenant(name=f"tenant {i % NUM_TENANTS}"), name=f"caller {i}", transport="grpc")
            for i in range(NUM_TENANTS * NUM_CALLERS)
        ]
        self._queue: FairQueue[Job] = FairQueue()
        engine = FakeEngine()
        divisions = Divisions(engine, max_cost=MAX_BATCH_TOKENS, max_open=4)
        limit = BatchLimit(MAX_BATCH_TOKENS)
        self._taker = BatchTaker(self._queue, limit=limit, divisions=divisions, min_shared=None)
        self._future = asyncio.get_running_loop().create_future()
        for job in self.jobs(num_waiting):
            self._queue.push(job)

    def jobs(self, count: int) -> list[Job]:
        """Made apart from what is timed."""
        return [
            Job(
                group=_group(self._dice.randint(64, self._longest)),
                caller=self._dice.choice(self._callers),
                deadline=None,
                enqueued=0.0,
                future=self._future,
            )
            for _ in range(count)
        ]

    def run(self, count: int) -> tuple[float, float]:
        """Seconds for each group, and the share of the batches that is filled."""
        coming, done, filled, num_batches = self.jobs(2 * count), 0, 0.0, 0
        started = time.process_time()
        while done < count:
            batch = self._taker.take(now=0.0, is_usable=lambda _: True)
            assert batch is not None, "the queue never runs empty"
            done += len(batch.jobs)
            filled += batch.cost
            num_batches += 1
            for _ in batch.jobs:
                self._queue.push(coming.pop())
            if self._leaves:
                for _ in batch.jobs:
                    leaving = coming.pop() if len(coming) > count else None
                    if leaving is not None:
                        self._queue.push(leaving)
                        self._queue.remove(leaving)
        return (time.process_time() - started) / done, filled / num_batches / MAX_BATCH_TOKENS


def _group(num_tokens: int) -> ScoreGroup:
    ids_T = np.zeros(num_tokens - 1, np.int64)
    response = ResponseToScore(ids_T=ids_T, score_mask_T=np.ones(num_tokens - 1, np.bool_))
    return ScoreGroup(prompt_ids_P=np.zeros(1, np.int64), responses=(response,), top_k=32, temperature=1.0)


def heap_microseconds(num_waiting: int) -> float:
    """Of a push and a pop on a plain heap of as many, to tell a slow machine from a slow queue; the least of rounds."""
    heap = [(index * 7919 % num_waiting, index) for index in range(num_waiting)]
    heapq.heapify(heap)
    rounds = []
    for _ in range(ROUNDS):
        started = time.process_time()
        for index in range(10_000):
            heapq.heappushpop(heap, (index * 7919 % num_waiting, index))
        rounds.append(time.process_time() - started)
    return min(rounds) / 10_000 * 1e6


async def measure(num_waiting: int) -> dict[str, dict[str, float]]:
    """By kind of load: microseconds for each group, the least of the rounds, and the fill."""
    results = {}
    for name, longest, leaves in (
        ("short groups, 64 to 512 tokens", 512, False),
        ("up to 3/5 of a batch", MAX_BATCH_TOKENS * 3 // 5, False),
        ("short groups, as many leave", 512, True),
    ):
        bench = Bench(num_waiting, longest=longest, leaves=leaves)
        rounds = [bench.run(2000) for _ in range(ROUNDS)]
        seconds, fill = min(seconds for seconds, _ in rounds), statistics.median(fill for _, fill in rounds)
        results[name] = {"microseconds": seconds * 1e6, "fill": fill}
    return results


def main() -> int:
    """Prints a line for each load, then the same as JSON."""
    parser = argparse.ArgumentParser(prog="python -m bench.scheduling", description="What the queue costs.")
    parser.add_argument("--waiting", type=int, nargs="*", default=[100, 10_000, 100_000])
    results = {}
    for num_waiting in parser.parse_args().waiting:
        results[num_waiting] = asyncio.run(measure(num_waiting))
        print(f"{num_waiting:8,d} waiting  a plain heap's push and pop: {heap_microseconds(num_waiting):.2f} us")
        for name, row in results[num_waiting].items():
            print(
                f"{num_waiting:8,d} waiting  {name:32} {row['microseconds']:6.1f} us a group, {row['fill']:.0%} filled"
            )
    print(json.dumps(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
