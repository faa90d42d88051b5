"""Batches are full, in fair order, and nothing large is starved by what fits beside others."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from preceptor_server.context_costs import FLAT, ContextCosts
from preceptor_server.engines.base import Engine
from preceptor_server.scheduling.batch_limit import BatchLimit
from preceptor_server.scheduling.batches import MAX_OVERTAKEN, Batch, BatchTaker, part_of
from preceptor_server.scheduling.divisions import Divisions
from preceptor_server.scheduling.fair_queue import FairQueue
from preceptor_server.scheduling.job import Job
from preceptor_server.types import ScoreGroup

from tests.unit.server.callers import caller_of
from tests.unit.server.groups import group_of, group_of_size
from tests.unit.server.scheduling.simulated import DividingEngine, SimulatedEngine

LIMIT = 100


def job_of(
    size: int,
    caller: str = "a",
    *,
    group: ScoreGroup | None = None,
    is_exclusive: bool = False,
    costs: ContextCosts = FLAT,
) -> Job:
    return Job(
        group=group or group_of_size(size, batch_invariant=is_exclusive),
        caller=caller_of(caller),
        deadline=None,
        enqueued=0.0,
        future=asyncio.get_running_loop().create_future(),
        context_costs=costs,
    )


class Bench:
    """A queue and what takes batches out of it."""

    def __init__(self, *jobs: Job, engine: Engine | None = None, min_shared: int | None = None) -> None:
        self.queue: FairQueue[Job] = FairQueue()
        self.limit = BatchLimit(LIMIT)
        self.divisions = Divisions(engine or SimulatedEngine(), max_cost=LIMIT, max_open=4)
        self.taker = BatchTaker(self.queue, limit=self.limit, divisions=self.divisions, min_shared=min_shared)
        self.unusable: list[Job] = []
        for job in jobs:
            self.push(job)

    def push(self, job: Job) -> None:
        assert not self.divisions.divides(job) or self.divisions.reserve(job)
        self.queue.push(job)

    def take(self) -> Batch | None:
        return self.taker.take(now=0.0, is_usable=lambda job: job not in self.unusable)

    def sizes(self) -> list[list[int]]:
        """Of all batches until nothing waits."""
        result = []
        while (batch := self.take()) is not None:
            result.append([job.num_tokens for job in batch.jobs])
        return result


async def test_batch_stays_within_the_limit() -> None:
    assert Bench(job_of(30), job_of(30), job_of(41)).sizes() == [[30, 30], [41]]


async def test_batch_may_fill_the_limit_to_the_last_token() -> None:
    assert Bench(job_of(30), job_of(30), job_of(40)).sizes() == [[30, 30, 40]]


async def test_what_does_not_fit_is_passed_over_for_what_does() -> None:
    bench = Bench(job_of(50, "a"), job_of(90, "a"), job_of(10, "a"), job_of(60, "b"), job_of(40, "c"))
    assert bench.sizes() == [[50, 40, 10], [60], [90]]


async def test_a_group_larger_than_the_limit_has_a_batch_of_its_own_where_it_cannot_be_divided() -> None:
    assert Bench(job_of(500, "a"), job_of(10, "b")).sizes() == [[500], [10]]


async def test_exclusive_group_shares_no_batch_and_holds_up_nobody() -> None:
    exclusive = job_of(10, "a", is_exclusive=True)
    assert Bench(exclusive, job_of(11, "b"), job_of(12, "c")).sizes() == [[10], [11, 12]]
    exclusive = job_of(10, "b", is_exclusive=True)
    assert Bench(job_of(11, "a"), exclusive, job_of(12, "c")).sizes() == [[11, 12], [10]]


async def test_empty_queue_gives_no_batch() -> None:
    assert Bench().take() is None


async def test_what_is_not_usable_is_taken_out_and_charged_to_nobody() -> None:
    late, job, other = job_of(90, "a"), job_of(20, "a"), job_of(30, "b")
    bench = Bench(late, job, other)
    bench.unusable = [late]
    assert bench.sizes() == [[20, 30]]
    assert late not in bench.queue


async def test_large_group_is_not_overtaken_for_ever_by_small_ones_of_its_own_caller() -> None:
    """Each batch begins with a group of 60 of somebody else, and has room for a 20 then, but never for the 90."""
    large = job_of(90, "a")
    bench = Bench(*(job_of(60, f"filler {i}") for i in range(2)), large, *(job_of(20, "a") for _ in range(40)))
    batches = []
    while large in bench.queue:
        batch = bench.take()
        assert batch is not None
        batches.append([job.num_tokens for job in batch.jobs])
        bench.push(job_of(60, f"newcomer {len(batches)}"))
        assert len(batches) < 100
    assert batches[-1] == [90]
    assert large.num_overtaken == MAX_OVERTAKEN


@pytest.mark.parametrize(("min_shared", "expected"), [(None, [[62], [62], [62]]), (60, [[62, 62, 62]])])
async def test_a_prefix_that_the_engine_computes_once_is_counted_once_whatever_stands_between(
    min_shared: int | None, expected: list[list[int]]
) -> None:
    groups = [group_of([7] * 60 + [i], [i]) for i in range(3)]
    bench = Bench(*(job_of(0, f"c{i}", group=group) for i, group in enumerate(groups)), min_shared=min_shared)
    other = job_of(10, "c0b")
    if min_shared:
        bench.push(other)
    batch = bench.take()
    assert batch is not None
    if min_shared:
        assert (len(batch.jobs), batch.num_computed, batch.cost) == (4, 62 + 2 + 2 + 10, 76.0)
    else:
        assert [[job.num_tokens for job in batch.jobs], *bench.sizes()] == expected


async def test_tokens_behind_a_long_context_take_more_room_and_a_prefix_that_is_there_takes_none() -> None:
    costs = ContextCosts(horizon=40.0)
    groups = [group_of([7] * 30 + [i], [i] * 9) for i in range(3)]
    alone = sum(1 + p / 40 for p in range(40))  # 59.5
    behind_the_prefix = sum(1 + p / 40 for p in range(30, 40))  # 18.625
    jobs = [job_of(0, f"c{i}", group=group, costs=costs) for i, group in enumerate(groups)]
    assert [job.cost for job in jobs] == [pytest.approx(alone)] * 3
    assert Bench(*jobs).sizes() == [[40], [40], [40]], "three of 40 tokens would be 120, and two of them 80"
    batch = Bench(*jobs, min_shared=20).take()
    assert batch is not None
    assert len(batch.jobs) == 3
    assert batch.cost == pytest.approx(alone + 2 * behind_the_prefix)
    part = part_of(jobs[1:], min_shared=20, lineage=None)
    assert part.cost == pytest.approx(alone + behind_the_prefix)


async def test_a_large_support_takes_more_room_than_a_small_one() -> None:
    plain, costly = group_of([1], [2] * 49, top_k=32), group_of([1], [2] * 49, top_k=1024)
    assert Bench(job_of(0, group=plain), job_of(0, group=plain)).sizes() == [[50, 50]]
    assert Bench(job_of(0, group=costly), job_of(0, group=costly)).sizes() == [[50], [50]]


async def test_a_large_group_of_an_engine_that_divides_is_taken_as_a_slice_by_itself() -> None:
    large = job_of(250, "a")
    bench = Bench(large, job_of(10, "b"), engine=DividingEngine())
    batch = bench.take()
    assert batch is not None
    assert (batch.jobs, batch.is_slice, batch.cost) == ((large,), True, LIMIT)
    following = bench.take()
    assert following is not None
    assert not following.is_slice


def test_a_lowered_limit_is_doubled_every_minute_until_it_is_what_is_configured() -> None:
    limit = BatchLimit(4096)
    limit.ran_out_of_memory(4096, now=10.0)
    assert [limit.tokens(now) for now in (10.0, 69.9)] == [2048, 2048]
    limit.ran_out_of_memory(2000, now=20.0)
    assert [limit.tokens(now) for now in (20.0, 79.9, 80.0, 139.9, 140.0, 200.0)] == [
        1000,
        1000,
        2000,
        2000,
        4000,
        4096,
    ]
    limit.ran_out_of_memory(10, now=300.0)
    assert limit.tokens(300.0) == 64, "no smaller than what makes sense"


SIZES = st.lists(st.tuples(st.integers(2, 130), st.integers(0, 4), st.booleans()), min_size=1, max_size=60)


@settings(max_examples=120, deadline=None)
@given(SIZES)
def test_batches_are_full_conserve_jobs_and_starve_nobody(sizes: Sequence[tuple[int, int, bool]]) -> None:
    async def check() -> None:
        jobs = [job_of(size, f"c{number}", is_exclusive=is_exclusive) for size, number, is_exclusive in sizes]
        bench = Bench(*jobs)
        seen: list[Job] = []
        first_since = dict.fromkeys(jobs, 0)
        while (batch := bench.take()) is not None:
            seen += batch.jobs
            room = LIMIT - sum(job.num_tokens for job in batch.jobs)
            assert room >= 0 or len(batch.jobs) == 1
            assert not batch.is_exclusive or len(batch.jobs) == 1
            left = [job for job in jobs if job in bench.queue]
            if room > 2 and not batch.is_exclusive:  # 98 of 100 is full
                # Work-conserving: whatever would still fit was not looked at, behind 16 others or one that must not
                # wait any longer.
                blocked = any(job.num_overtaken >= MAX_OVERTAKEN for job in left)
                fitting = [job for job in left if job.num_tokens <= room and not job.is_exclusive]
                assert not fitting or blocked or len(left) > 16
            assert all(job.num_overtaken <= MAX_OVERTAKEN for job in jobs)
            for job in left:
                first_since[job] += 1
        assert (len(seen), set(seen)) == (len(jobs), set(jobs))
        # Each batch takes at least the entry whose turn it is: nobody waits for more batches than there are entries.
        assert max(first_since.values()) <= len(jobs)

    asyncio.run(check())


def test_batches_of_random_groups_are_nearly_full() -> None:
    async def fill() -> float:
        dice = random.Random(3)
        bench = Bench(*(job_of(dice.randint(5, 60), f"c{dice.randint(0, 9)}") for _ in range(2000)))
        sizes = [sum(batch) for batch in bench.sizes()]
        return float(np.mean(sizes[:-20])) / LIMIT

    assert asyncio.run(fill()) >= 0.95
