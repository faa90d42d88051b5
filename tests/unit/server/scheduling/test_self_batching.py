"""The scheduler over an engine that batches by itself: groups one by one, room by tokens, and nothing left running."""

from __future__ import annotations

import asyncio
import random

import numpy as np
import pytest
from preceptor_server.errors import DeadlinePassedError, EngineFailedError, ServerError
from preceptor_server.scheduling.costs import SharedPrefixes
from preceptor_server.types import GroupColumns, ScoreGroup

from tests.unit.server.callers import caller_of
from tests.unit.server.groups import group_of, group_of_size
from tests.unit.server.scheduling.running import begin, let_things_happen, running, sizes
from tests.unit.server.scripted_engine import ScriptedEngine, columns_named_after

ROOM = 100
MINUTE = 60_000.0


async def test_groups_go_one_by_one_as_long_as_there_is_room_and_wait_for_no_window() -> None:
    engine = ScriptedEngine(is_open=False, max_tokens_in_flight=ROOM)
    async with running(engine, batch_window_ms=MINUTE) as scheduler:
        calls = [
            await begin(scheduler.score(group_of_size(size), caller=caller_of("a"))) for size in (40, 50, 10, 3, 2)
        ]
        await let_things_happen()
        assert sizes(engine.batches) == [[40], [50], [10]]
        assert (scheduler.num_waiting, scheduler.num_tokens_in_flight) == (2, 100)
        engine.gate.set()
        answers = await asyncio.gather(*calls)
    assert sizes(engine.batches) == [[40], [50], [10], [3], [2]]
    assert [len(answer.columns[0].sampled_logprobs_N) for answer in answers] == [39, 49, 9, 2, 1]


async def test_group_larger_than_the_room_goes_when_nothing_else_is_in_flight_and_is_not_overtaken() -> None:
    engine = ScriptedEngine(is_open=False, max_tokens_in_flight=ROOM)
    async with running(engine) as scheduler:
        small = await begin(scheduler.score(group_of_size(5), caller=caller_of("a")))
        await engine.has_begun(1)
        large = await begin(scheduler.score(group_of_size(ROOM + 1), caller=caller_of("a")))
        last = await begin(scheduler.score(group_of_size(6), caller=caller_of("a")))
        await let_things_happen()
        assert sizes(engine.batches) == [[5]]
        engine.gate.set()
        await small
        engine.gate.clear()
        await engine.has_begun(2)
        await let_things_happen()
        assert sizes(engine.batches) == [[5], [ROOM + 1]]
        engine.gate.set()
        await asyncio.gather(large, last)
    assert sizes(engine.batches) == [[5], [ROOM + 1], [6]]


async def test_callers_share_the_room_fairly() -> None:
    engine = ScriptedEngine(is_open=False, max_tokens_in_flight=ROOM)
    async with running(engine) as scheduler:
        calls = [await begin(scheduler.score(group_of_size(90), caller=caller_of("a")))]
        await engine.has_begun(1)
        for caller, size in [("a", 91), ("a", 92), ("a", 93), ("b", 94)]:
            calls.append(await begin(scheduler.score(group_of_size(size), caller=caller_of(caller))))
        engine.gate.set()
        await asyncio.gather(*calls)
    assert sizes(engine.batches) == [[90], [94], [91], [92], [93]], "a was served already, and b was not"


async def test_batch_invariant_group_rides_with_nothing_else_in_flight() -> None:
    engine = ScriptedEngine(is_open=False, max_tokens_in_flight=ROOM)
    async with running(engine) as scheduler:
        first = await begin(scheduler.score(group_of_size(10), caller=caller_of("a")))
        invariant = await begin(scheduler.score(group_of_size(11, batch_invariant=True), caller=caller_of("a")))
        last = await begin(scheduler.score(group_of_size(12), caller=caller_of("a")))
        await let_things_happen()
        assert sizes(engine.batches) == [[10]]
        engine.gate.set()
        await first
        engine.gate.clear()
        await engine.has_begun(2)
        await let_things_happen()
        assert sizes(engine.batches) == [[10], [11]]
        engine.gate.set()
        await asyncio.gather(invariant, last)
    assert engine.most_in_flight == 1


async def test_caller_that_leaves_ends_the_engines_work_and_its_room_is_free_again() -> None:
    engine = ScriptedEngine(is_open=False, max_tokens_in_flight=ROOM)
    async with running(engine) as scheduler:
        gone = await begin(scheduler.score(group_of_size(90), caller=caller_of("a")))
        stays = await begin(scheduler.score(group_of_size(10), caller=caller_of("a")))
        waits = await begin(scheduler.score(group_of_size(80), caller=caller_of("a")))
        await engine.has_begun(2)
        gone.cancel()
        await asyncio.wait([gone], timeout=5)
        await asyncio.wait_for(engine.has_begun(3), 5)
        assert (engine.num_cancelled, scheduler.num_tokens_in_flight) == (1, 90)
        engine.gate.set()
        await asyncio.gather(stays, waits)
    assert gone.cancelled()


async def test_caller_that_leaves_before_the_engines_task_has_begun_leaves_nothing_behind() -> None:
    engine = ScriptedEngine(max_tokens_in_flight=ROOM)
    async with running(engine) as scheduler:
        await let_things_happen()
        call = asyncio.create_task(scheduler.score(group_of_size(90), caller=caller_of("a")))
        # The call queues, the scheduler starts a task, and that task has not had its first step.
        while not scheduler.num_tokens_in_flight:
            await asyncio.sleep(0)
        call.cancel()
        await asyncio.wait([call], timeout=5)
        await let_things_happen()
        assert (scheduler.num_waiting, scheduler.num_tokens_in_flight, engine.num_in_flight) == (0, 0, 0)
        await asyncio.wait_for(scheduler.score(group_of_size(91), caller=caller_of("a")), 5)


async def test_deadline_that_ends_in_flight_ends_the_engines_work_and_says_so() -> None:
    engine = ScriptedEngine(is_open=False, max_tokens_in_flight=ROOM)
    async with running(engine) as scheduler:
        with pytest.raises(DeadlinePassedError, match=r"the deadline passed after 0\.\d s while it was scored"):
            await scheduler.score(group_of_size(5), caller=caller_of("a"), timeout_seconds=0.5)
        await scheduler.stop()
        assert (engine.num_cancelled, engine.num_in_flight, scheduler.num_tokens_in_flight) == (1, 0, 0)


async def test_deadline_that_ends_in_the_queue_is_told_although_nothing_moves() -> None:
    engine = ScriptedEngine(is_open=False, max_tokens_in_flight=ROOM)
    async with running(engine) as scheduler:
        first = await begin(scheduler.score(group_of_size(ROOM), caller=caller_of("a")))
        await engine.has_begun(1)
        with pytest.raises(DeadlinePassedError, match="in the queue"):
            await scheduler.score(group_of_size(5), caller=caller_of("a"), timeout_seconds=0.02)
        assert scheduler.num_waiting == 0
        engine.gate.set()
        await first
    assert sizes(engine.batches) == [[ROOM]]


async def test_group_behind_one_that_did_not_fit_goes_once_that_one_is_gone() -> None:
    engine = ScriptedEngine(is_open=False, max_tokens_in_flight=ROOM)
    async with running(engine) as scheduler:
        first = await begin(scheduler.score(group_of_size(90), caller=caller_of("a")))
        large = await begin(scheduler.score(group_of_size(50), caller=caller_of("a")))
        small = await begin(scheduler.score(group_of_size(10), caller=caller_of("a")))
        await let_things_happen()
        assert sizes(engine.batches) == [[90]]
        large.cancel()
        await asyncio.wait_for(engine.has_begun(2), 5)
        assert sizes(engine.batches) == [[90], [10]]
        engine.gate.set()
        await asyncio.gather(first, small)


async def test_engine_that_cancels_its_own_work_fails_the_caller_instead_of_leaving_it_waiting() -> None:
    class Quitter(ScriptedEngine):
        async def score(self, batch: object) -> list[GroupColumns]:
            raise asyncio.CancelledError

    engine = Quitter(max_tokens_in_flight=ROOM)
    async with running(engine) as scheduler:
        with pytest.raises(EngineFailedError, match="CancelledError"):
            await asyncio.wait_for(scheduler.score(group_of_size(5), caller=caller_of("a")), 5)


class UnevenEngine(ScriptedEngine):
    """Takes its time, each group another; fails one in twenty; and is slow to let go of what is cancelled."""

    def __init__(self, dice: random.Random) -> None:
        super().__init__(max_tokens_in_flight=ROOM)
        self.num_inside = 0
        self.most_tokens = 0
        self._tokens = 0
        self._dice = dice

    async def score(self, batch: object) -> list[GroupColumns]:
        assert isinstance(batch, list)
        [group] = batch
        assert isinstance(group, ScoreGroup)
        self.num_inside += 1
        self._tokens += group.num_tokens
        self.most_tokens = max(self.most_tokens, self._tokens)
        try:
            await asyncio.sleep(self._dice.uniform(0, 0.004))
            if self._dice.random() < 0.05:
                raise RuntimeError("the twentieth")
            return [columns_named_after(group)]
        except asyncio.CancelledError:
            await asyncio.sleep(0.001)
            raise
        finally:
            self.num_inside -= 1
            self._tokens -= group.num_tokens


async def test_nothing_is_left_over_of_500_groups_with_random_cancellations_and_deadlines() -> None:
    dice = random.Random(7)
    engine = UnevenEngine(dice)
    outcomes: dict[str, int] = {}

    async def ask(index: int) -> None:
        group = group_of([1], [index] * dice.randint(1, 40))
        timeout = dice.choice([None, None, 0.0, 0.002, 0.02])
        try:
            scored = await scheduler.score(group, caller=caller_of(f"caller {index % 3}"), timeout_seconds=timeout)
        except ServerError as error:
            outcome = type(error).__name__
        except asyncio.CancelledError:
            outcome = "cancelled"
        else:
            assert set(scored.columns[0].sampled_logprobs_N.tolist()) == {index}
            outcome = "answered"
        outcomes[outcome] = outcomes.get(outcome, 0) + 1

    async with running(engine, max_queue_tokens=1_000_000) as scheduler:
        callers: list[asyncio.Task[None]] = []
        for index in range(500):
            callers.append(asyncio.create_task(ask(index)))
            if dice.random() < 0.3:
                dice.choice(callers).cancel()
            if dice.random() < 0.3:
                await asyncio.sleep(dice.uniform(0, 0.002))
        await asyncio.wait_for(asyncio.gather(*callers, return_exceptions=True), 60)
        async with asyncio.timeout(5):
            while scheduler.num_tokens_in_flight:
                await asyncio.sleep(0.001)
        assert (scheduler.num_waiting, engine.num_inside) == (0, 0)
    # One that is cancelled before its first step never asks, and is not counted.
    assert min(outcomes[name] for name in ("answered", "cancelled", "DeadlinePassedError", "BadGroupError")) > 0
    assert engine.most_tokens <= ROOM
    assert {task for task in asyncio.all_tasks() if task is not asyncio.current_task()} == set()


async def test_a_prefix_that_neighbours_share_takes_room_once() -> None:
    engine = ScriptedEngine(is_open=False, max_tokens_in_flight=ROOM, min_shared_prefix=16)
    shared = list(range(60))
    async with running(engine) as scheduler:
        groups = [group_of([*shared, 70 + index], [1, 2]) for index in range(3)] + [group_of(shared[::-1], [1, 2])]
        calls = [await begin(scheduler.score(group, caller=caller_of("a"))) for group in groups]
        await let_things_happen()
        # 63 tokens, then 3 each; the last prompt is another, and has to wait.
        assert scheduler.num_tokens_in_flight == 63 + 3 + 3
        assert scheduler.num_waiting == 1
        engine.gate.set()
        await asyncio.gather(*calls)
    assert scheduler.num_tokens_in_flight == 0


def test_prompts_that_are_remembered_are_bounded_in_tokens() -> None:
    prefixes = SharedPrefixes(min_shared=16)
    groups = [group_of([i] * 500_000, [1]) for i in range(40)]
    for group in groups:
        prefixes.add(group)
    remembered = [prefixes.num_shared(group) > 0 for group in groups]
    assert remembered == [False] * 32 + [True] * 8, "4,000,000 tokens, the latest"
    again = group_of(np.full(4_100_000, 7), [1])
    for _ in range(5):
        prefixes.add(again)
    assert prefixes.num_shared(again) == 4_100_000, "what was computed last, however long"
    assert prefixes.num_tokens == 4_100_000
