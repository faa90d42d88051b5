from __future__ import annotations

import asyncio

import pytest
from preceptor_server.config import SchedulerConfig
from preceptor_server.errors import (
    DeadlinePassedError,
    DrainingError,
    EngineDiedError,
    EngineFailedError,
    EngineUnavailableError,
    QueueFullError,
    UnknownTeacherError,
)
from preceptor_server.scheduling.scheduler import Scheduler
from preceptor_server.types import CANDIDATES_PER_TOKEN, EngineInfo

from tests.unit.server.callers import caller_of
from tests.unit.server.groups import group_of, group_of_size, response_of
from tests.unit.server.scheduling.running import BATCH_TOKENS, begin, occupy, running, sizes
from tests.unit.server.scripted_engine import ScriptedEngine


async def test_everyone_gets_the_answer_to_their_own_group() -> None:
    engine = ScriptedEngine()
    async with running(engine) as scheduler:
        groups = [group_of([1], [10 + i, 20 + i]) for i in range(9)]
        scored = await asyncio.gather(
            *(scheduler.score(g, caller=caller_of(f"c{i % 2}")) for i, g in enumerate(groups))
        )
    for i, answer in enumerate(scored):
        assert answer.columns[0].sampled_logprobs_N.tolist() == [10 + i, 20 + i]


async def test_what_waits_is_batched_within_the_budget() -> None:
    engine = ScriptedEngine(is_open=False)
    async with running(engine) as scheduler:
        tasks = [await occupy(engine, scheduler)]
        tasks += [
            await begin(scheduler.score(group_of_size(size), caller=caller_of("a"))) for size in (40, 60, 50, 51, 7)
        ]
        assert scheduler.num_waiting == 5
        engine.gate.set()
        await asyncio.gather(*tasks)
    assert sizes(engine.batches) == [[2], [40, 60], [50, 7], [51]], "the 7 fits where the 51 does not"


async def test_group_larger_than_the_budget_has_a_batch_of_its_own() -> None:
    engine = ScriptedEngine(is_open=False)
    async with running(engine) as scheduler:
        tasks = [await occupy(engine, scheduler)]
        tasks += [await begin(scheduler.score(group_of_size(size), caller=caller_of("a"))) for size in (500, 10)]
        engine.gate.set()
        await asyncio.gather(*tasks)
    assert sizes(engine.batches) == [[2], [500], [10]]


async def test_batch_invariant_group_rides_alone() -> None:
    engine = ScriptedEngine(is_open=False)
    async with running(engine) as scheduler:
        tasks = [await occupy(engine, scheduler)]
        for size, is_invariant in ((10, False), (11, True), (12, False), (13, False)):
            group = group_of_size(size, batch_invariant=is_invariant)
            tasks.append(await begin(scheduler.score(group, caller=caller_of("a"))))
        engine.gate.set()
        await asyncio.gather(*tasks)
    assert sizes(engine.batches) == [[2], [10, 12, 13], [11]]


async def test_idle_server_waits_a_window_for_company() -> None:
    engine = ScriptedEngine()
    async with running(engine, batch_window_ms=20) as scheduler:
        first = await begin(scheduler.score(group_of_size(10), caller=caller_of("a")))
        await asyncio.sleep(0.001)
        second = await begin(scheduler.score(group_of_size(11), caller=caller_of("b")))
        await asyncio.gather(first, second)
    assert sizes(engine.batches) == [[10, 11]]


async def test_full_batch_waits_for_no_window() -> None:
    engine = ScriptedEngine()
    async with running(engine, batch_window_ms=60_000) as scheduler:
        await asyncio.wait_for(scheduler.score(group_of_size(BATCH_TOKENS), caller=caller_of("a")), 5)
    assert sizes(engine.batches) == [[100]]


async def test_callers_share_the_engine_fairly() -> None:
    engine = ScriptedEngine(is_open=False)
    async with running(engine) as scheduler:
        tasks = [await occupy(engine, scheduler)]
        for caller, size in [("a", 91), ("a", 92), ("a", 93), ("b", 94)]:
            tasks.append(await begin(scheduler.score(group_of_size(size), caller=caller_of(caller))))
        engine.gate.set()
        await asyncio.gather(*tasks)
    assert sizes(engine.batches) == [[2], [91], [94], [92], [93]]


async def test_cancelled_caller_leaves_the_queue_and_costs_no_forward() -> None:
    engine = ScriptedEngine(is_open=False)
    async with running(engine) as scheduler:
        occupier = await occupy(engine, scheduler)
        gone = await begin(scheduler.score(group_of_size(30), caller=caller_of("a")))
        stays = await begin(scheduler.score(group_of_size(40), caller=caller_of("a")))
        gone.cancel()
        await asyncio.wait([gone])
        assert scheduler.num_waiting == 1
        engine.gate.set()
        await asyncio.gather(occupier, stays)
    assert gone.cancelled()
    assert sizes(engine.batches) == [[2], [40]]


async def test_caller_that_leaves_during_the_forward_harms_nobody_in_its_batch() -> None:
    engine = ScriptedEngine(is_open=False)
    async with running(engine) as scheduler:
        occupier = await occupy(engine, scheduler)
        gone = await begin(scheduler.score(group_of([1], [5, 6]), caller=caller_of("a")))
        stays = await begin(scheduler.score(group_of([1], [7, 8]), caller=caller_of("a")))
        engine.gate.set()
        await occupier
        engine.gate.clear()
        await engine.has_begun(2)
        gone.cancel()
        engine.gate.set()
        answer = await stays
    assert answer.columns[0].sampled_logprobs_N.tolist() == [7, 8]


async def test_deadline_that_ends_in_the_queue_costs_no_forward() -> None:
    engine = ScriptedEngine(is_open=False)
    async with running(engine) as scheduler:
        occupier = await occupy(engine, scheduler)
        late = await begin(scheduler.score(group_of_size(30), caller=caller_of("a"), timeout_seconds=0.001))
        patient = await begin(scheduler.score(group_of_size(40), caller=caller_of("a"), timeout_seconds=60))
        await asyncio.sleep(0.005)
        engine.gate.set()
        with pytest.raises(DeadlinePassedError, match=r"the deadline passed after 0\.\d s in the queue"):
            await late
        await asyncio.gather(occupier, patient)
    assert sizes(engine.batches) == [[2], [40]]


async def test_model_that_raises_fails_its_batch_and_no_other(caplog: pytest.LogCaptureFixture) -> None:
    engine = ScriptedEngine(is_open=False)
    cause = RuntimeError("out of memory at 0x7f")
    async with running(engine) as scheduler:
        engine.errors.append(cause)
        hit = await occupy(engine, scheduler)
        spared = await begin(scheduler.score(group_of_size(30), caller=caller_of("a")))
        engine.gate.set()
        with pytest.raises(EngineFailedError, match="the model failed") as caught:
            await hit
        await spared
        await scheduler.score(group_of_size(31), caller=caller_of("a"))
    assert sizes(engine.batches) == [[2], [30], [31]]
    assert caught.value.__cause__ is cause
    assert "0x7f" not in str(caught.value), "the model's own words stay in the log"
    assert "out of memory at 0x7f" in caplog.text


async def test_batch_that_failed_once_is_computed_again_in_halves(caplog: pytest.LogCaptureFixture) -> None:
    engine = ScriptedEngine(is_open=False)
    async with running(engine) as scheduler:
        occupier = await occupy(engine, scheduler)
        both = [await begin(scheduler.score(group_of([1], [i]), caller=caller_of("a"))) for i in (5, 6)]
        engine.gate.set()
        await occupier
        engine.errors.append(ValueError("a passing fault"))
        answers = await asyncio.gather(*both)
    assert [answer.columns[0].sampled_logprobs_N.tolist() for answer in answers] == [[5], [6]]
    assert sizes(engine.batches) == [[2], [2, 2], [2], [2]]
    assert caplog.text.count("Traceback") == 1, "the cause is told, though nobody was harmed"


async def test_engine_that_died_or_is_away_is_told_as_it_is(caplog: pytest.LogCaptureFixture) -> None:
    engine = ScriptedEngine()
    async with running(engine) as scheduler:
        for error in (
            EngineDiedError("gone while it scored", retry_after_seconds=3),
            EngineUnavailableError("starting again", retry_after_seconds=4),
        ):
            engine.errors.append(error)
            with pytest.raises(EngineUnavailableError) as caught:
                await scheduler.score(group_of_size(5), caller=caller_of("a"))
            assert caught.value is error
        await scheduler.score(group_of_size(5), caller=caller_of("a"))
    assert "Traceback" not in caplog.text, "it is no mystery to whoever reads the log"


async def test_answer_carries_the_revision_of_the_weights_that_scored_it() -> None:
    engine = ScriptedEngine(is_open=False)
    engine.adapters = {"maths": "1+maths-3"}
    async with running(engine) as scheduler:
        plain = await begin(scheduler.score(group_of_size(5), caller=caller_of("a")))
        await engine.has_begun(1)
        adapted = await begin(scheduler.score(group_of([1], [2], adapter="maths"), caller=caller_of("a")))
        engine.revision = "2"  # while the first is in flight
        engine.gate.set()
        assert (await plain).revision == "1"
        assert (await adapted).revision == "1+maths-3"
        assert (await scheduler.score(group_of_size(5), caller=caller_of("a"))).revision == "2"


async def test_adapter_that_was_taken_away_while_the_group_waited_is_told() -> None:
    engine = ScriptedEngine(is_open=False)
    engine.adapters = {"maths": "1+maths-3"}
    async with running(engine) as scheduler:
        occupier = await occupy(engine, scheduler)
        late = await begin(scheduler.score(group_of([1], [2], adapter="maths"), caller=caller_of("a")))
        engine.adapters = {}
        engine.gate.set()
        with pytest.raises(UnknownTeacherError, match="'maths' was taken away while the group waited"):
            await late
        await occupier
    assert sizes(engine.batches) == [[2]]


async def test_deadline_that_ends_during_a_forward_of_a_batch_leaves_the_batch_alone() -> None:
    engine = ScriptedEngine(is_open=False)
    async with running(engine) as scheduler:
        late = await begin(scheduler.score(group_of_size(5), caller=caller_of("a"), timeout_seconds=0.5))
        await engine.has_begun(1)
        await asyncio.sleep(0.6)
        engine.gate.set()
        assert (await late).columns[0].sampled_logprobs_N.tolist() == [2, 2, 2, 2]
    assert engine.num_cancelled == 0


async def test_engine_that_answers_too_few_groups_fails_its_batch_instead_of_leaving_callers_waiting() -> None:
    engine = ScriptedEngine()
    async with running(engine) as scheduler:
        engine.drops_an_answer = True
        with pytest.raises(EngineFailedError):
            await asyncio.wait_for(scheduler.score(group_of_size(5), caller=caller_of("a")), 5)
        engine.drops_an_answer = False
        await asyncio.wait_for(scheduler.score(group_of_size(6), caller=caller_of("a")), 5)


async def test_full_queue_rejects_at_once_with_a_delay_and_recovers() -> None:
    engine = ScriptedEngine(is_open=False)
    async with running(engine, max_queue_tokens=50) as scheduler:
        tasks = [await occupy(engine, scheduler)]
        tasks.append(await begin(scheduler.score(group_of_size(40), caller=caller_of("a"))))
        with pytest.raises(QueueFullError, match="max_queue_tokens=50") as caught:
            await scheduler.score(group_of_size(11), caller=caller_of("b"))
        assert caught.value.retry_after_seconds > 0
        # What fits still does.
        tasks.append(await begin(scheduler.score(group_of_size(10), caller=caller_of("b"))))
        engine.gate.set()
        await asyncio.gather(*tasks)
        await scheduler.score(group_of_size(11), caller=caller_of("b"))
    assert sizes(engine.batches) == [[2], [40, 10], [11]]


async def test_candidates_weigh_on_the_queue_so_that_its_memory_is_bounded() -> None:
    """One token with 64 x 40 candidates weighs as 40 more."""
    engine = ScriptedEngine(is_open=False)
    heavy = group_of([1], response_of([2], candidates=[[3] * (40 * CANDIDATES_PER_TOKEN)]))
    async with running(engine, max_queue_tokens=50) as scheduler:
        occupier = await occupy(engine, scheduler)
        waiting = await begin(scheduler.score(heavy, caller=caller_of("a")))
        with pytest.raises(QueueFullError, match="42 tokens wait already and 42 more"):
            await scheduler.score(heavy, caller=caller_of("b"))
        engine.gate.set()
        await asyncio.gather(occupier, waiting)


async def test_cancelled_group_frees_its_place_in_the_queue() -> None:
    engine = ScriptedEngine(is_open=False)
    async with running(engine, max_queue_tokens=50) as scheduler:
        occupier = await occupy(engine, scheduler)
        gone = await begin(scheduler.score(group_of_size(50), caller=caller_of("a")))
        gone.cancel()
        await asyncio.wait([gone])
        next_one = await begin(scheduler.score(group_of_size(50), caller=caller_of("b")))
        engine.gate.set()
        await asyncio.gather(occupier, next_one)


@pytest.mark.parametrize("max_concurrent_batches", [1, 3])
async def test_no_more_batches_are_in_flight_than_the_engine_takes(max_concurrent_batches: int) -> None:
    engine = ScriptedEngine(max_concurrent_batches=max_concurrent_batches, is_open=False)
    async with running(engine) as scheduler:
        tasks = [await begin(scheduler.score(group_of_size(100), caller=caller_of("a"))) for _ in range(6)]
        await engine.has_begun(max_concurrent_batches)
        # Time enough for the scheduler to start one too many.
        for _ in range(20):
            await asyncio.sleep(0)
        assert len(engine.batches) == max_concurrent_batches
        engine.gate.set()
        await asyncio.gather(*tasks)
    assert engine.most_in_flight == max_concurrent_batches
    assert len(engine.batches) == 6


async def test_failed_batch_gives_its_place_back() -> None:
    engine = ScriptedEngine()
    async with running(engine) as scheduler:
        for size in (5, 6, 7):
            engine.errors.append(RuntimeError("again"))
            with pytest.raises(EngineFailedError):
                await scheduler.score(group_of_size(size), caller=caller_of("a"))
        await asyncio.wait_for(scheduler.score(group_of_size(8), caller=caller_of("a")), 5)


async def test_stop_waits_for_the_batch_in_flight_and_tells_whoever_still_waits() -> None:
    engine = ScriptedEngine(is_open=False)
    async with running(engine) as scheduler:
        in_flight = await occupy(engine, scheduler)
        waiting = [
            await begin(scheduler.score(group_of_size(10, batch_invariant=is_invariant), caller=caller_of("a")))
            for is_invariant in (False, True, False, True)
        ]
        stopping = asyncio.create_task(scheduler.stop())
        # Time enough to stop without waiting.
        for _ in range(20):
            await asyncio.sleep(0)
        assert not stopping.done()
        engine.gate.set()
        await stopping
        results = await asyncio.wait_for(asyncio.gather(*waiting, return_exceptions=True), 5)
        assert (await in_flight).columns[0].sampled_logprobs_N.tolist() == [2]
        assert [type(result) for result in results] == [DrainingError] * 4, "they may ask another server"
    assert sizes(engine.batches) == [[2]]


async def test_stop_before_start_is_harmless() -> None:
    await Scheduler(ScriptedEngine(), SchedulerConfig()).stop()


async def test_timings_are_those_of_queue_and_forward() -> None:
    engine = ScriptedEngine(is_open=False)
    async with running(engine) as scheduler:
        task = await occupy(engine, scheduler)
        await asyncio.sleep(0.02)
        engine.gate.set()
        scored = await task
    assert scored.forward_ms >= 19
    assert 0 <= scored.queue_ms < scored.forward_ms


@pytest.mark.parametrize(
    ("min_shared_prefix", "expected"),
    [(None, [1, 1, 1]), (60, [3]), (61, [1, 1, 1])],
    ids=["an engine that shares nothing", "a prefix long enough", "a prefix one token too short"],
)
async def test_a_prefix_that_the_engine_computes_once_is_counted_once(
    min_shared_prefix: int | None, expected: list[int]
) -> None:
    engine = ScriptedEngine(is_open=False, min_shared_prefix=min_shared_prefix)
    shared = [7] * 60
    async with running(engine) as scheduler:
        occupier = await occupy(engine, scheduler)
        # 62 tokens each: with the prefix counted once, 62 + 2 + 2 fit into 100.
        calls = [await begin(scheduler.score(group_of([*shared, i], [i]), caller=caller_of("a"))) for i in range(1, 4)]
        engine.gate.set()
        await asyncio.gather(occupier, *calls)
    assert [len(batch) for batch in engine.batches[1:]] == expected


async def test_a_fault_of_the_scheduler_itself_leaves_nobody_waiting_and_it_goes_on(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Undescribed(ScriptedEngine):
        is_broken = False

        def info(self) -> EngineInfo:
            if self.is_broken:
                raise RuntimeError("no description")
            return super().info()

    engine = Undescribed()
    async with running(engine) as scheduler:
        task = await begin(scheduler.score(group_of_size(5), caller=caller_of("a")))
        engine.is_broken = True
        with pytest.raises(EngineFailedError):
            await asyncio.wait_for(task, 5)
        engine.is_broken = False
        assert (scheduler.num_waiting, scheduler.waiting_by_tenant()) == (0, {})
        await asyncio.wait_for(scheduler.score(group_of_size(6), caller=caller_of("a")), 5)
    assert caplog.text.count("RuntimeError: no description") == 1
    assert sizes(engine.batches) == [[6]]
