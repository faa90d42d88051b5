"""A bad group fails alone: whoever shares a batch with it is answered, and what happened stands in the log once."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from preceptor_server.errors import (
    BadGroupError,
    EngineDiedError,
    EngineFailedError,
    EngineOutOfMemoryError,
    ServerError,
)
from preceptor_server.scheduling.bad_groups import BadGroups
from preceptor_server.scheduling.batch_limit import BatchLimit
from preceptor_server.scheduling.batches import part_of
from preceptor_server.scheduling.config import SchedulerConfig
from preceptor_server.scheduling.divisions import Divisions
from preceptor_server.scheduling.failures import GROUP_TOO_LARGE, Failures
from preceptor_server.scheduling.job import Job
from preceptor_server.scheduling.scheduler import Scheduler
from preceptor_server.types import GroupColumns, ScoredGroup, ScoreGroup

from tests.unit.server.callers import caller_of
from tests.unit.server.groups import group_of, group_of_size
from tests.unit.server.scheduling.simulated import DividingEngine, SimulatedEngine, simulated
from tests.unit.server.scheduling.virtual_time import run

Outcome = ScoredGroup | BaseException


def group_named(token: int, *, size: int = 10) -> ScoreGroup:
    """The simulated engine looks at the first token of the response."""
    return group_of([1], [token] * (size - 1))


async def ask(scheduler: Scheduler, groups: Sequence[ScoreGroup]) -> list[Outcome]:
    """All at once, in one batch: a group of another caller keeps the engine busy while they arrive."""
    occupier = asyncio.create_task(scheduler.score(group_named(99), caller=caller_of("occupier")))
    await asyncio.sleep(0.0024)
    calls = (scheduler.score(group, caller=caller_of(f"c{i}")) for i, group in enumerate(groups))
    outcomes = await asyncio.gather(*calls, return_exceptions=True)
    await occupier
    return outcomes


def check(outcomes: Sequence[Outcome], tokens: Sequence[int], bad: Sequence[int]) -> None:
    for token, outcome in zip(tokens, outcomes, strict=True):
        if token in bad:
            assert type(outcome) is BadGroupError
        else:
            assert isinstance(outcome, ScoredGroup)
            assert set(outcome.columns[0].sampled_logprobs_N.tolist()) == {token}


@settings(max_examples=80, deadline=None)
@given(st.integers(1, 40).flatmap(lambda n: st.tuples(st.just(n), st.sets(st.integers(0, n - 1)))))
def test_search_finds_any_set_of_culprits_and_everybody_else_is_answered(case: tuple[int, set[int]]) -> None:
    count, bad = case
    engine = SimulatedEngine(bad_ids=sorted(bad))

    async def simulate() -> list[Outcome]:
        async with simulated(engine) as scheduler:
            return await ask(scheduler, [group_named(token) for token in range(count)])

    check(run(simulate()), range(count), sorted(bad))
    # 2 n - 1 nodes of a binary tree at most; a culprit costs at most two for each level of it.
    num_forwards = len(engine.batches) - 1
    levels = max(1, (count - 1).bit_length())
    assert num_forwards <= min(2 * count - 1, 1 + 2 * levels * len(bad))


def test_culprit_is_told_an_incident_that_stands_in_the_log_with_the_cause_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def simulate() -> list[Outcome]:
        async with simulated(SimulatedEngine(bad_ids=[3])) as scheduler:
            return await ask(scheduler, [group_named(token) for token in range(8)])

    error = run(simulate())[3]
    assert isinstance(error, BadGroupError)
    assert error.reason == "BAD_GROUP"
    assert error.incident in str(error)
    assert "no such token" not in str(error), "the model's own words stay in the log"
    assert caplog.text.count(f"incident={error.incident}") == 1
    assert caplog.text.count("Traceback") == 1


def test_the_same_group_is_refused_at_once_for_a_while_and_others_are_not() -> None:
    engine = SimulatedEngine(bad_ids=[3])

    async def simulate() -> None:
        async with simulated(engine, SchedulerConfig(bad_group_seconds=60)) as scheduler:
            [first] = await asyncio.gather(
                scheduler.score(group_named(3), caller=caller_of("a")), return_exceptions=True
            )
            num_batches = len(engine.batches)
            with pytest.raises(BadGroupError, match=r"failed for this group before .* refused for 60 s") as caught:
                await scheduler.score(group_named(3), caller=caller_of("b"))
            assert isinstance(first, BadGroupError)
            assert caught.value.incident == first.incident
            assert len(engine.batches) == num_batches
            await scheduler.score(group_named(4), caller=caller_of("a"))
            await asyncio.sleep(61)
            with pytest.raises(BadGroupError, match="the model failed for this group"):
                await scheduler.score(group_named(3), caller=caller_of("a"))
            assert len(engine.batches) == num_batches + 2

    run(simulate())


def test_digest_tells_groups_apart_by_all_that_the_engine_reads() -> None:
    base = group_of([1, 2], [3, 4], top_k=4)
    others = [
        group_of([1, 2], [3, 5], top_k=4),
        group_of([1, 5], [3, 4], top_k=4),
        group_of([1, 2], [3, 4], top_k=5),
        group_of([1, 2], [3, 4], top_k=4, temperature=2.0),
        group_of([1, 2], [3], [4], top_k=4),
        group_of([1], [2, 3, 4], top_k=4),
        group_of([1, 2], [3, 4], top_k=4, adapter="maths"),
        group_of([1, 2], [3, 4], top_k=4, batch_invariant=True),
    ]

    async def check_all() -> None:
        bad = BadGroups(seconds=60)
        await bad.remember(base, revision="1", incident="i", reason="BAD_GROUP", now=0.0)
        with pytest.raises(BadGroupError):
            await bad.check(group_of([1, 2], [3, 4], top_k=4), revision="1", now=1.0)
        for other in others:
            await bad.check(other, revision="1", now=1.0)
        await bad.check(base, revision="2", now=1.0)
        for i in range(3000):
            await bad.remember(group_of([1], [i]), revision="1", incident="i", reason="BAD_GROUP", now=2.0)
        assert len(bad) == 1024
        await bad.check(base, revision="1", now=2.0)  # pushed out by newer ones
        await bad.check(group_of([1], [2999]), revision="1", now=100.0)
        assert len(bad) == 0

    asyncio.run(check_all())


class Faulty(SimulatedEngine):
    """Fails for everything until it is mended."""

    def __init__(self, error: Exception | None = None) -> None:
        super().__init__()
        self.error: Exception | None = error or RuntimeError("the device is gone")

    def check(self, group: ScoreGroup) -> None:
        if self.error is not None:
            raise self.error


def test_a_model_that_fails_for_everything_is_not_searched_for_culprits_for_ever() -> None:
    engine = Faulty()
    forwards = []
    kinds: list[Counter[type]] = []

    async def simulate() -> list[Outcome]:
        async with simulated(engine) as scheduler:
            # The occupier's own failure counts as one.
            for batch in range(5):
                before = len(engine.batches)
                groups = [group_named(16 * batch + i, size=12) for i in range(16)]
                calls = (scheduler.score(group, caller=caller_of("a")) for group in groups)
                outcomes = await asyncio.gather(*calls, return_exceptions=True)
                forwards.append(len(engine.batches) - before)
                kinds.append(Counter(type(outcome) for outcome in outcomes))
            engine.error = None
            groups = [group_named(i) for i in range(90, 95)]
            return await asyncio.gather(*(scheduler.score(group, caller=caller_of("a")) for group in groups))

    outcomes = run(simulate())
    assert forwards == [31, 31, 31, 3, 3]
    assert kinds == [{BadGroupError: 16}] * 3 + [{EngineFailedError: 16}] * 2
    check(outcomes, range(90, 95), [])


def test_a_suspected_model_that_answers_one_half_is_trusted_again_and_the_culprit_found() -> None:
    engine = SimulatedEngine(bad_ids=range(50))

    async def simulate() -> list[Outcome]:
        async with simulated(engine) as scheduler:
            for token in range(3):
                calls = [scheduler.score(group_named(token), caller=caller_of("attacker"))]
                await asyncio.gather(*calls, return_exceptions=True)
            return await ask(scheduler, [group_named(token) for token in (60, 61, 62, 63, 64, 49, 65, 66)])

    check(run(simulate()), (60, 61, 62, 63, 64, 49, 65, 66), [49])


@pytest.mark.parametrize("error", [EngineDiedError("gone", retry_after_seconds=1)])
def test_batch_of_an_engine_that_died_is_not_searched(error: ServerError) -> None:
    engine = Faulty(error)

    async def simulate() -> list[Outcome]:
        async with simulated(engine) as scheduler:
            calls = (scheduler.score(group_named(i), caller=caller_of("a")) for i in range(4))
            return await asyncio.gather(*calls, return_exceptions=True)

    assert run(simulate()) == [error] * 4
    assert len(engine.batches) == 1


def test_others_have_their_turn_while_culprits_are_searched_for() -> None:
    engine = SimulatedEngine(bad_ids=range(32))

    async def simulate() -> float:
        async with simulated(engine) as scheduler:
            loop = asyncio.get_running_loop()
            bad = asyncio.create_task(ask(scheduler, [group_named(token, size=128) for token in range(32)]))
            await asyncio.sleep(1.1)  # the whole batch has failed
            began = loop.time()
            await scheduler.score(group_named(60), caller=caller_of("other"))
            seconds = loop.time() - began
            await bad
            return seconds

    assert run(simulate()) <= 1.1, "after the half that is computed just now: half a second, and not five"


def test_whoever_leaves_during_the_search_is_not_computed_again() -> None:
    engine = SimulatedEngine(bad_ids=[0])

    async def simulate() -> None:
        async with simulated(engine) as scheduler:
            occupier = asyncio.create_task(scheduler.score(group_named(99), caller=caller_of("occupier")))
            await asyncio.sleep(0.0024)
            groups = [group_named(i, size=400) for i in range(8)]
            calls = [
                asyncio.create_task(
                    scheduler.score(group, caller=caller_of("a"), timeout_seconds=1.0 if i > 5 else None)
                )
                for i, group in enumerate(groups)
            ]
            await asyncio.sleep(0.5)
            calls[4].cancel()
            calls[5].cancel()
            await asyncio.sleep(0.5)
            outcomes = await asyncio.gather(*calls, occupier, return_exceptions=True)
            assert [type(outcome).__name__ for outcome in outcomes] == [
                "BadGroupError",
                *["ScoredGroup"] * 3,
                *["CancelledError"] * 2,
                *["DeadlinePassedError"] * 2,
                "ScoredGroup",
            ]

    run(simulate())
    assert sum(len(batch) for batch in engine.batches[2:]) == 4 + 2 + 2 + 1 + 1, "halves of the first four only"


class SmallMemory(SimulatedEngine):
    """Has none for more tokens than fit at once."""

    async def score(self, batch: Sequence[ScoreGroup]) -> list[GroupColumns]:
        num_tokens = sum(group.num_tokens for group in batch)
        if self.max_fitting_tokens is not None and num_tokens > self.max_fitting_tokens:
            self.batches.append([group.num_tokens for group in batch])
            raise EngineOutOfMemoryError(f"{num_tokens} tokens")
        return await super().score(batch)


def test_batch_that_does_not_fit_into_memory_is_halved_and_later_ones_are_smaller(
    caplog: pytest.LogCaptureFixture,
) -> None:
    engine = SmallMemory(max_fitting_tokens=1000)

    async def simulate() -> list[Outcome]:
        async with simulated(engine) as scheduler:
            outcomes = await ask(scheduler, [group_named(token, size=250) for token in range(16)])
            outcomes += await ask(scheduler, [group_named(token, size=250) for token in range(16, 24)])
            return outcomes

    with caplog.at_level(logging.WARNING):
        check(run(simulate()), range(24), [])
    tokens = [sum(batch) for batch in engine.batches]
    assert tokens == [10, 4000, 2000, 2000, 1000, 1000, 1000, 1000, 10, 1000, 1000]
    assert "Traceback" not in caplog.text


def test_group_that_does_not_fit_is_divided_until_it_does() -> None:
    engine = SmallMemory(max_fitting_tokens=1000)
    group = group_of([1], *([i] * 300 for i in range(9)))

    async def simulate() -> ScoredGroup:
        async with simulated(engine) as scheduler:
            return await scheduler.score(group, caller=caller_of("a"))

    scored = run(simulate())
    assert [set(columns.sampled_logprobs_N.tolist()) for columns in scored.columns] == [{i} for i in range(9)]
    # 2,701 tokens at once; slices of at most 1,350, of four responses; then of at most 675, of two.
    assert [sum(batch) for batch in engine.batches] == [2701, 1201, 601, 601, 601, 601, 301]


def test_group_that_does_not_fit_and_cannot_be_divided_is_told_and_refused_later() -> None:
    engine = SmallMemory(max_fitting_tokens=1000)

    async def simulate() -> None:
        async with simulated(engine) as scheduler:
            for _ in range(2):
                with pytest.raises(BadGroupError) as caught:
                    await scheduler.score(group_of_size(3000), caller=caller_of("a"))
                assert caught.value.reason == GROUP_TOO_LARGE
            await scheduler.score(group_of_size(1000), caller=caller_of("a"))

    run(simulate())
    assert engine.batches == [[3000], [1000]]


def test_a_divided_group_that_fails_is_told_and_closed() -> None:
    engine = DividingEngine(bad_ids=[7])

    async def simulate() -> None:
        async with simulated(engine) as scheduler:
            with pytest.raises(BadGroupError):
                await scheduler.score(group_named(7, size=9000), caller=caller_of("a"))
            await scheduler.score(group_named(8, size=9000), caller=caller_of("a"))

    run(simulate())
    assert engine.num_open == 0


class CancelsItsOwn(Faulty):
    """Raises CancelledError for the batches that hold one token, as a library of its own may."""

    async def score(self, batch: Sequence[ScoreGroup]) -> list[GroupColumns]:
        if len(batch) == 4 and int(batch[0].responses[0].ids_T[0]) == 44:
            raise asyncio.CancelledError
        return await super().score(batch)


def test_half_of_a_batch_that_the_engine_cancels_leaves_nobody_of_the_other_half_waiting() -> None:
    engine = CancelsItsOwn(RuntimeError("the device is gone"))

    async def simulate() -> list[Outcome]:
        async with simulated(engine) as scheduler:
            for token in range(3):  # the model is suspected
                await asyncio.gather(scheduler.score(group_named(token), caller=caller_of("a")), return_exceptions=True)
            calls = (scheduler.score(group_named(40 + i), caller=caller_of("a"), timeout_seconds=60) for i in range(8))
            return await asyncio.gather(*calls, return_exceptions=True)

    assert [type(outcome) for outcome in run(simulate())] == [EngineFailedError] * 8


def test_groups_that_wait_to_be_computed_again_are_bounded_like_others() -> None:
    """Half of them are bad: each batch takes more forwards to search than come between two batches."""
    engine = SimulatedEngine(bad_ids=range(1, 100, 2))

    async def simulate() -> None:
        config = SchedulerConfig(max_queue_groups=64, bad_group_seconds=0)
        async with simulated(engine, config) as scheduler:
            calls: list[asyncio.Task[ScoredGroup]] = []
            for i in range(600):
                asking = scheduler.score(group_named(i % 100, size=256), caller=caller_of(f"c{i % 7}"))
                calls.append(asyncio.create_task(asking))
                await asyncio.sleep(0.05)
                assert sum(not call.done() for call in calls) <= 64 + 16, "and a batch is in flight"
            await asyncio.gather(*calls, return_exceptions=True)
            assert (scheduler.num_waiting, scheduler.waiting_by_tenant()) == (0, {})

    run(simulate())


class SlowToRemember(BadGroups):
    """Digests a group as long as a test wants."""

    def __init__(self) -> None:
        super().__init__(seconds=60)
        self.go = asyncio.Event()

    async def remember(self, group: ScoreGroup, *, revision: str, incident: str, reason: str, now: float) -> None:
        await self.go.wait()
        await super().remember(group, revision=revision, incident=incident, reason=reason, now=now)


def test_a_search_that_ends_while_its_culprit_is_written_down_is_charged_once() -> None:
    """Two parts of a batch may be computed at once."""

    async def simulate() -> list[float]:
        engine, loop = SimulatedEngine(), asyncio.get_running_loop()
        jobs = [
            Job(
                group=group_named(token),
                caller=caller_of("a"),
                deadline=None,
                enqueued=0.0,
                future=loop.create_future(),
            )
            for token in range(2)
        ]
        charged: list[float] = []
        bad_groups = SlowToRemember()
        failures = Failures(
            bad_groups=bad_groups,
            divisions=Divisions(engine, max_cost=0, max_open=1),
            limit=BatchLimit(100),
            min_shared=None,
            hold=lambda job: None,
            requeue=lambda job: None,
            charge=lambda job, cost: charged.append(cost),
        )
        await failures.failed(part_of(jobs, min_shared=None, lineage=None), RuntimeError("one of them"))
        bad, good = failures.retries
        failing = asyncio.create_task(failures.failed(bad, RuntimeError("this one")))
        await asyncio.sleep(0)
        await failures.succeeded(good)
        bad_groups.go.set()
        await failing
        assert isinstance(jobs[0].future.exception(), BadGroupError)
        return charged

    assert run(simulate()) == [20.0]
