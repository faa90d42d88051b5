from __future__ import annotations

import asyncio
import gc
import tracemalloc
from collections.abc import Iterator

import numpy as np
import pytest
from preceptor_server.callers import Caller
from preceptor_server.errors import QueueFullError
from preceptor_server.scheduling.admission import Admission, Waiting
from preceptor_server.scheduling.config import SchedulerConfig
from preceptor_server.scheduling.job import Job
from preceptor_server.scheduling.scheduler import Scheduler
from preceptor_server.scheduling.speed import Speed
from preceptor_server.tenants.tenant import Tenant
from preceptor_server.types import ScoreGroup

from tests.unit.server.callers import caller_of
from tests.unit.server.groups import group_of_size
from tests.unit.server.scheduling.running import begin
from tests.unit.server.scripted_engine import ScriptedEngine


@pytest.fixture
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    loop = asyncio.new_event_loop()
    yield loop
    loop.close()


class Door:
    """An admission, and jobs for it."""

    def __init__(self, loop: asyncio.AbstractEventLoop, **bounds: int) -> None:
        self.speed = Speed()
        self.admission = Admission(SchedulerConfig(**bounds), self.speed)
        self._loop = loop

    def job(self, size: int, caller: str | Caller = "a", *, deadline: float | None = None) -> Job:
        return Job(
            group=group_of_size(size),
            caller=caller if isinstance(caller, Caller) else caller_of(caller),
            deadline=deadline,
            enqueued=0.0,
            future=self._loop.create_future(),
        )

    def admit(self, size: int, caller: str | Caller = "a", *, deadline: float | None = None) -> Job:
        job = self.job(size, caller, deadline=deadline)
        self.admission.admit(job, now=0.0)
        return job

    def refused(self, size: int, caller: str | Caller = "a", *, deadline: float | None = None) -> QueueFullError:
        before = self.admission.total
        with pytest.raises(QueueFullError) as caught:
            self.admit(size, caller, deadline=deadline)
        assert self.admission.total == before
        return caught.value


def test_group_that_fills_the_queue_to_the_last_token_is_admitted(loop: asyncio.AbstractEventLoop) -> None:
    door = Door(loop, max_queue_tokens=100)
    door.admit(60, "a")
    door.admit(40, "b")
    assert door.admission.total.tokens == 100


def test_group_that_would_pass_a_bound_is_refused_with_the_figures(loop: asyncio.AbstractEventLoop) -> None:
    door = Door(loop, max_queue_tokens=100)
    door.admit(60, "a")
    assert str(door.refused(41, "b")).startswith(
        "60 tokens wait already and 41 more would pass the server's max_queue_t"
    )
    door = Door(loop, max_queue_bytes=1000)
    door.admit(50, "a")
    # A prompt of one id of 8 bytes; 49 ids of 8 bytes, each with a byte of its mask.
    assert "449 bytes wait already and 566 more would pass the server's max_queue_bytes=1000" in str(
        door.refused(63, "b")
    )
    door = Door(loop, max_queue_groups=2)
    door.admit(50, "a")
    door.admit(50, "b")
    assert "2 groups wait already and 1 more would pass the server's max_queue_groups=2" in str(door.refused(2, "c"))


def test_one_tenant_fills_two_thirds_and_leaves_the_rest_to_others(loop: asyncio.AbstractEventLoop) -> None:
    door = Door(loop, max_queue_tokens=900)
    for _ in range(60):
        door.admit(10, "greedy")
    assert "600 tokens of tenant 'greedy' wait already, and 10 more would leave too little" in str(
        door.refused(10, "greedy")
    )
    for _ in range(20):
        door.admit(10, "late")
    door.refused(10, "late")
    door.admit(10, "later")
    assert {name: waiting.tokens for name, waiting in door.admission.by_tenant.items()} == {
        "greedy": 600,
        "late": 200,
        "later": 10,
    }


def test_names_of_one_tenant_count_as_one(loop: asyncio.AbstractEventLoop) -> None:
    door = Door(loop, max_queue_groups=9)
    for i in range(6):
        door.admit(10, caller_of(f"name {i}", tenant="t"))
    door.refused(10, caller_of("another", tenant="t"))
    door.admit(10, "other")


def test_who_has_nothing_waiting_may_queue_one_group_of_any_size_that_fits(loop: asyncio.AbstractEventLoop) -> None:
    door = Door(loop, max_queue_tokens=100)
    job = door.admit(100, "a")
    door.admission.release(job)
    door.admit(2, "a")
    door.refused(90, "a")


def test_a_tenants_own_bounds_hold_whatever_is_free(loop: asyncio.AbstractEventLoop) -> None:
    small = Tenant(name="small", max_queue_tokens=30)
    thin = Tenant(name="thin", max_queue_bytes=300)
    door = Door(loop)
    door.admit(30, Caller(tenant=small, name="x", transport="grpc"))
    assert "32 would wait of tenant 'small', whose max_queue_tokens=30" in str(
        door.refused(2, Caller(tenant=small, name="y", transport="grpc"))
    )
    door.admit(30, Caller(tenant=thin, name="x", transport="grpc"))
    assert "whose max_queue_bytes=300" in str(door.refused(30, Caller(tenant=thin, name="x", transport="grpc")))


def test_what_is_released_makes_room_once(loop: asyncio.AbstractEventLoop) -> None:
    door = Door(loop, max_queue_tokens=100)
    job = door.admit(60)
    door.admission.release(job)
    door.admission.release(job)
    assert (door.admission.total, dict(door.admission.by_tenant)) == (Waiting(), {})
    assert door.admit(60) is not job


def test_before_any_batch_the_delay_is_a_second(loop: asyncio.AbstractEventLoop) -> None:
    assert Door(loop, max_queue_tokens=100).refused(101).retry_after_seconds == 1.0


def test_delay_is_the_time_in_which_as_much_is_served_in_fair_order(loop: asyncio.AbstractEventLoop) -> None:
    door = Door(loop, max_queue_tokens=9000)
    door.speed.observe(1000, 2.0)
    door.admit(6000, "a")
    assert door.refused(100, "a").retry_after_seconds == pytest.approx(0.2), "alone it has the engine for itself"
    door.admit(2000, caller_of("b", tenant_weight=3.0))
    # 100 of a's tokens are served while 300 of b's are: 400 tokens at 500 a second.
    assert door.refused(100, "a").retry_after_seconds == pytest.approx(0.8)
    # Of c, that has a third of b's weight and the same as a: 2,000 tokens and four times that, but no more than waits.
    assert door.refused(2000, "c").retry_after_seconds == pytest.approx(8000 / 500)


def test_speed_follows_slowly_what_is_newest(loop: asyncio.AbstractEventLoop) -> None:
    door = Door(loop, max_queue_tokens=100)
    door.speed.observe(100, 1.0)
    door.speed.observe(200, 1.0)
    # 100 + 0.2 * (200 - 100) = 120 tokens per second
    assert door.refused(240).retry_after_seconds == pytest.approx(2.0)


@pytest.mark.parametrize(("size", "delay"), [(101, 0.1), (100_000, 30.0)])
def test_delay_is_never_pointlessly_short_or_long(loop: asyncio.AbstractEventLoop, size: int, delay: float) -> None:
    door = Door(loop, max_queue_tokens=100)
    door.speed.observe(2000, 1.0)
    assert door.refused(size).retry_after_seconds == delay


def test_batch_that_took_no_time_is_not_counted(loop: asyncio.AbstractEventLoop) -> None:
    door = Door(loop, max_queue_tokens=100)
    door.speed.observe(1000, 0.0)
    assert door.refused(101).retry_after_seconds == 1.0


def test_group_that_cannot_start_before_its_deadline_is_refused_at_once(loop: asyncio.AbstractEventLoop) -> None:
    door = Door(loop)
    door.speed.observe(1000, 1.0)
    for _ in range(3):
        door.admit(1000, "a")
    # Its own line is 3 s long; the engine might be half as fast again as it was, and take 2 s.
    assert "its deadline is in 1.9 s, and what the caller sent before takes 3.0 s" in str(
        door.refused(10, "a", deadline=1.9)
    )
    door.admit(10, "a", deadline=2.1)
    door.admit(10, "b", deadline=0.1)
    door.admit(10, caller_of("a", priority=1), deadline=0.1)


async def test_memory_of_a_full_queue_is_what_its_groups_hold() -> None:
    """Groups of about 1 MB each, of which 64 MB may wait: what Python holds beside the arrays is a few kB a group."""
    bound = 64 * 1024**2
    scheduler = Scheduler(ScriptedEngine(), SchedulerConfig(max_queue_bytes=bound, max_queue_tokens=10**9))

    def group(seed: int) -> ScoreGroup:
        rng = np.random.default_rng(seed)
        made = group_of_size(2)
        return ScoreGroup(prompt_ids_P=rng.integers(0, 99, 125_000), responses=made.responses, top_k=4, temperature=1.0)

    gc.collect()
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    tasks, refused = [], 0
    for i in range(200):
        task = await begin(scheduler.score(group(i), caller=caller_of(f"c{i % 7}"), timeout_seconds=600))
        if task.done():
            assert isinstance(task.exception(), QueueFullError)
            refused += 1
        else:
            tasks.append(task)
    held = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert refused > 100
    assert 0.8 * bound < scheduler.num_waiting_bytes <= bound
    assert held <= scheduler.num_waiting_bytes + 200 * 20_000
    await scheduler.stop()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert (scheduler.num_waiting, scheduler.num_waiting_bytes) == (0, 0)
