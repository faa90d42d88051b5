"""Whatever happens to calls and engine, every call gets one outcome, and afterwards nothing is held for anybody."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

from hypothesis import given, settings
from hypothesis import strategies as st
from preceptor_server.errors import (
    BadGroupError,
    EngineDiedError,
    EngineOutOfMemoryError,
    ServerError,
)
from preceptor_server.scheduling.config import SchedulerConfig
from preceptor_server.scheduling.device_turns import DeviceTurns
from preceptor_server.scheduling.failures import GROUP_TOO_LARGE
from preceptor_server.scheduling.scheduler import Scheduler
from preceptor_server.types import EngineInfo, GroupColumns, ScoredGroup, ScoreGroup

from tests.unit.server.callers import caller_of
from tests.unit.server.groups import group_of
from tests.unit.server.scheduling.simulated import DividingEngine, SimulatedDivision, SimulatedEngine
from tests.unit.server.scheduling.virtual_time import run

GOOD, BAD, CANCELS = 1, 2, 3
"""First tokens of responses: answered; raises; the engine raises CancelledError, as a library of its own may."""


@dataclass(frozen=True, kw_only=True)
class World:
    """What engine there is."""

    divides: bool
    batches_itself: bool
    num_at_once: int
    max_fitting_tokens: int | None
    deaths: frozenset[int]
    """Numbers of forwards in which it dies."""
    has_rival: bool
    """Another teacher takes turns with it."""


@dataclass(frozen=True, kw_only=True)
class Call:
    """Asked after `delay` seconds."""

    delay: float
    tokens: tuple[int, ...]
    """Of each response, the one that it repeats."""
    length: int
    tenant: str
    name: str
    priority: int
    timeout: float | None
    leaves_after: float | None


@dataclass(frozen=True, kw_only=True)
class Pause:
    """New weights after `delay` seconds."""

    delay: float
    seconds: float


class PlainEngine(SimulatedEngine):
    """Large groups are computed by responses."""

    def __init__(self, world: World) -> None:
        super().__init__()
        self.world, self.revision = world, 0

    async def score(self, batch: Sequence[ScoreGroup]) -> list[GroupColumns]:
        number = len(self.batches)
        columns = await super().score(batch)
        self.fault(batch, sum(group.num_tokens for group in batch), number)
        return columns

    def fault(self, groups: Sequence[ScoreGroup], num_tokens: int, number: int) -> None:
        if number in self.world.deaths:
            raise EngineDiedError("gone", retry_after_seconds=1)
        if self.world.max_fitting_tokens is not None and num_tokens > self.world.max_fitting_tokens:
            raise EngineOutOfMemoryError(f"{num_tokens} tokens")
        firsts = {int(response.ids_T[0]) for group in groups for response in group.responses}
        if CANCELS in firsts:
            raise asyncio.CancelledError
        if BAD in firsts:
            raise RuntimeError("no such token")

    def info(self) -> EngineInfo:
        return replace(
            super().info(),
            revision=str(self.revision),
            max_concurrent_batches=self.world.num_at_once,
            batches_itself=self.world.batches_itself,
            max_tokens_in_flight=6000,
        )


class SlicingEngine(PlainEngine, DividingEngine):
    """Large groups are computed in slices."""

    def divide(self, group: ScoreGroup, *, max_cost: float) -> SimulatedDivision:
        return _FaultyDivision(self, group, max_tokens=int(max_cost))


class _FaultyDivision(SimulatedDivision):
    """Raises where it was closed while it computed."""

    def __init__(self, engine: SlicingEngine, group: ScoreGroup, *, max_tokens: int) -> None:
        super().__init__(engine, group, max_tokens=max_tokens)
        self._faulty, self._whole = engine, group

    async def advance(self) -> GroupColumns | None:
        number, num_tokens = len(self._faulty.batches), self.next_tokens
        columns = await super().advance()
        if self._is_closed:
            raise RuntimeError("closed")
        self._faulty.fault([self._whole], num_tokens, number)
        return columns


WORLDS = st.builds(
    World,
    divides=st.booleans(),
    batches_itself=st.sampled_from([False, False, False, True]),
    num_at_once=st.sampled_from([1, 1, 2, 3]),
    max_fitting_tokens=st.sampled_from([None, None, 1500, 3000]),
    deaths=st.frozensets(st.integers(0, 30), max_size=3),
    has_rival=st.booleans(),
)
MOMENTS = st.sampled_from([0.0, 0.0, 0.0, 0.001, 0.1, 0.3, 1.0, 2.5])
CALLS = st.builds(
    Call,
    delay=MOMENTS,
    tokens=st.lists(st.sampled_from([GOOD] * 6 + [BAD, CANCELS]), min_size=1, max_size=4).map(tuple),
    length=st.sampled_from([1, 10, 100, 500, 1000, 3000, 5000]),
    tenant=st.sampled_from(["x", "x", "y", "z"]),
    name=st.sampled_from(["a", "b"]),
    priority=st.sampled_from([0, 0, 1]),
    timeout=st.sampled_from([None, None, None, 0.0, 0.5, 2.0, 20.0]),
    leaves_after=st.sampled_from([None, None, None, 0.0, 0.0, 0.1, 1.0, 4.0]),
)
PAUSES = st.builds(Pause, delay=MOMENTS, seconds=st.sampled_from([0.0, 1.0]))
EVENTS = st.lists(st.one_of(CALLS, CALLS, CALLS, CALLS, CALLS, PAUSES), min_size=1, max_size=40)
ENDS = st.one_of(st.none(), st.sampled_from([0.0, 0.5, 3.0, 60.0]))
"""Seconds of a drain after the last event; None: all of it is worked off."""


@settings(max_examples=300, deadline=None)
@given(world=WORLDS, events=EVENTS, drain_seconds=ENDS)
def test_every_call_has_one_outcome_and_nothing_is_held_afterwards(
    world: World, events: list[Call | Pause], drain_seconds: float | None
) -> None:
    run(_simulate(world, events, drain_seconds))


async def _simulate(world: World, events: Sequence[Call | Pause], drain_seconds: float | None) -> None:
    unseen: list[dict[str, object]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: unseen.append(context))
    engine: PlainEngine = SlicingEngine(world) if world.divides else PlainEngine(world)
    turns = DeviceTurns() if world.has_rival else None
    config = SchedulerConfig(max_batch_tokens=4096, max_queue_tokens=40_000, max_divided_groups=2)
    scheduler = Scheduler(engine, config, teacher="ours", turns=turns)
    scheduler.start()
    rival = asyncio.create_task(_rival(turns)) if turns else None
    tasks: list[tuple[Call, asyncio.Task[ScoredGroup | Exception]]] = []
    pauses: list[asyncio.Task[None]] = []
    for event in events:
        await asyncio.sleep(event.delay)
        if isinstance(event, Call):
            tasks.append((event, asyncio.create_task(_ask(scheduler, event))))
        else:
            pauses.append(asyncio.create_task(_renew(scheduler, engine, event)))
    if drain_seconds is not None:
        await scheduler.drain(drain_seconds)
    outcomes = await asyncio.gather(*(task for _, task in tasks), return_exceptions=True)
    await asyncio.gather(*pauses)
    await scheduler._in_flight.drained()
    await asyncio.sleep(0)
    _check_nothing_is_held(scheduler, engine)
    for (call, _), outcome in zip(tasks, outcomes, strict=True):
        _check_outcome(call, outcome, world)
        await _check_blame(scheduler, engine, call)
    if rival is not None:
        rival.cancel()
        with suppress(asyncio.CancelledError):
            await rival
    await scheduler.stop()
    assert not turns or not turns._is_taken or turns._timer is not None
    assert not unseen


def _group(call: Call) -> ScoreGroup:
    return group_of([9], *([token] * call.length for token in call.tokens))


async def _ask(scheduler: Scheduler, call: Call) -> ScoredGroup | Exception:
    caller = caller_of(call.name, tenant=call.tenant, priority=call.priority)
    asking = asyncio.ensure_future(scheduler.score(_group(call), caller=caller, timeout_seconds=call.timeout))
    if call.leaves_after is not None:
        # By a timer, as a client's cancellation comes: between any two steps of the loop.
        asyncio.get_running_loop().call_later(call.leaves_after, asking.cancel)
    try:
        return await asking
    except ServerError as error:
        return error


async def _renew(scheduler: Scheduler, engine: PlainEngine, pause: Pause) -> None:
    with suppress(ServerError):  # of a scheduler that is being stopped
        async with scheduler.paused():
            assert not scheduler.num_groups_in_flight
            await asyncio.sleep(pause.seconds)
            engine.revision += 1


async def _rival(turns: DeviceTurns) -> None:
    while True:
        async with turns.turn("rival", weight=1, cost=1000):
            await asyncio.sleep(0.3)
        await asyncio.sleep(0.1)


def _check_nothing_is_held(scheduler: Scheduler, engine: PlainEngine) -> None:
    assert (scheduler.num_waiting, scheduler.num_waiting_tokens, scheduler.num_waiting_bytes) == (0, 0, 0)
    assert (scheduler.num_groups_in_flight, scheduler.num_tokens_in_flight) == (0, 0)
    assert not scheduler.waiting_by_tenant()
    assert not scheduler._jobs
    assert len(scheduler._queue) == 0
    assert not scheduler._failures.retries
    admission, divisions = scheduler._admission, scheduler._divisions
    assert not any((admission._waiting, admission._weights, admission._cost_by_line, admission._total_weight))
    assert not any((divisions._holders, divisions._num_held, divisions._rooms))
    assert scheduler._in_flight.cost == 0
    assert scheduler._loop_task is not None
    assert not scheduler._loop_task.done()
    if isinstance(engine, SlicingEngine):
        assert engine.num_open == 0


async def _check_blame(scheduler: Scheduler, engine: PlainEngine, call: Call) -> None:
    """No innocent is refused when it is sent again, whatever became of it."""
    if BAD in call.tokens or engine.world.max_fitting_tokens is not None:
        return
    for revision in range(engine.revision + 1):
        await scheduler._bad_groups.check(_group(call), revision=str(revision), now=0.0)


def _check_outcome(call: Call, outcome: ScoredGroup | BaseException, world: World) -> None:
    if isinstance(outcome, ScoredGroup):
        assert not {BAD, CANCELS} & set(call.tokens)
        assert [set(columns.sampled_logprobs_N.tolist()) for columns in outcome.columns] == [{t} for t in call.tokens]
        assert [len(columns.sampled_logprobs_N) for columns in outcome.columns] == [call.length] * len(call.tokens)
    elif isinstance(outcome, BadGroupError):
        is_too_large = outcome.reason == GROUP_TOO_LARGE and world.max_fitting_tokens is not None
        assert BAD in call.tokens or is_too_large, f"an innocent is blamed: {outcome}"
    elif isinstance(outcome, asyncio.CancelledError):
        assert call.leaves_after is not None
    else:
        assert isinstance(outcome, ServerError), repr(outcome)
