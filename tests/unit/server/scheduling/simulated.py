"""An engine that takes a second for 4,096 tokens, and clients in open and closed loops, in virtual time."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import numpy as np
from preceptor.wire import LogprobArray, TokenArray
from preceptor_server.callers import Caller
from preceptor_server.errors import QueueFullError
from preceptor_server.scheduling.config import SchedulerConfig
from preceptor_server.scheduling.scheduler import Scheduler
from preceptor_server.types import EngineInfo, GroupColumns, ScoreGroup

from tests.unit.server.groups import group_of_size
from tests.unit.server.scripted_engine import columns_named_after

BATCH_TOKENS = 4096
BATCH_SECONDS = 1.0
SECONDS_PER_TOKEN = BATCH_SECONDS / BATCH_TOKENS
ROUND_TRIP_SECONDS = 0.005


class SimulatedEngine:
    """One batch at a time, as long as its tokens take. Raises for groups that hold one of `bad_ids`."""

    def __init__(self, *, bad_ids: Sequence[int] = (), max_fitting_tokens: int | None = None) -> None:
        self.batches: list[list[int]] = []
        """Tokens of each group of each forward; of a slice, its own."""
        self._bad_ids = frozenset(bad_ids)
        self.max_fitting_tokens = max_fitting_tokens

    def load(self) -> None:
        pass

    def close(self) -> None:
        pass

    def info(self) -> EngineInfo:
        return EngineInfo(
            engine="simulated",
            model="simulated",
            revision="1",
            dtype="float32",
            device="cpu",
            vocabulary_size=100,
            max_model_len=1_000_000,
        )

    async def score(self, batch: Sequence[ScoreGroup]) -> list[GroupColumns]:
        await self.forward([group.num_tokens for group in batch])
        for group in batch:
            self.check(group)
        return [columns_named_after(group) for group in batch]

    async def reference_logprobs(self, token_ids: TokenArray, *, first_row: int = 0) -> LogprobArray:
        raise NotImplementedError("the scheduler never asks")

    async def forward(self, sizes: list[int]) -> None:
        self.batches.append(sizes)
        await asyncio.sleep(sum(sizes) * SECONDS_PER_TOKEN)

    def check(self, group: ScoreGroup) -> None:
        if any(int(response.ids_T[0]) in self._bad_ids for response in group.responses):
            raise RuntimeError("no such token")


class DividingEngine(SimulatedEngine):
    """Implements Divides: slices of as many tokens as may be, without regard to what they are."""

    def __init__(self, *, bad_ids: Sequence[int] = ()) -> None:
        super().__init__(bad_ids=bad_ids)
        self.num_open = 0
        self.most_open = 0

    def divide(self, group: ScoreGroup, *, max_cost: float) -> SimulatedDivision:
        return SimulatedDivision(self, group, max_tokens=int(max_cost))


class SimulatedDivision:
    """Counts itself as open from its first slice on."""

    def __init__(self, engine: DividingEngine, group: ScoreGroup, *, max_tokens: int) -> None:
        self._engine = engine
        self._group = group
        self._max_tokens = max_tokens
        self._left = group.num_tokens
        self._is_closed = False
        engine.num_open += 1
        engine.most_open = max(engine.most_open, engine.num_open)

    @property
    def next_tokens(self) -> int:
        return min(self._left, self._max_tokens)

    @property
    def next_cost(self) -> float:
        return float(self.next_tokens)

    async def advance(self) -> GroupColumns | None:
        await self._engine.forward([self.next_tokens])
        self._engine.check(self._group)
        self._left -= self.next_tokens
        return None if self._left else columns_named_after(self._group)

    def close(self) -> None:
        if not self._is_closed:
            self._engine.num_open -= 1
        self._is_closed = True


@dataclass(slots=True, kw_only=True)
class Served:
    """What clients were answered."""

    tokens: Counter[str] = field(default_factory=Counter)
    """By tenant."""
    tokens_by_caller: Counter[str] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)
    """From asking to the answer, of the calls that note it."""
    num_refused: int = 0

    def jain(self) -> float:
        """Jain's index of fairness over tenants: 1 = all alike, 1/n = one has everything."""
        shares = np.array(list(self.tokens.values()), np.float64)
        return float(shares.sum() ** 2 / (len(shares) * (shares**2).sum()))

    def note(self, caller: Caller, num_tokens: int) -> None:
        self.tokens[caller.tenant.name] += num_tokens
        self.tokens_by_caller[caller.name] += num_tokens


@asynccontextmanager
async def simulated(engine: SimulatedEngine, config: SchedulerConfig | None = None) -> AsyncIterator[Scheduler]:
    scheduler = Scheduler(engine, config or SchedulerConfig())
    scheduler.start()
    try:
        yield scheduler
    finally:
        await scheduler.stop()


async def closed_loop(
    scheduler: Scheduler, caller: Caller, served: Served, *, at_once: int, size: int, seconds: float
) -> None:
    """Asks for `at_once` groups, and for another as soon as one is answered."""
    loop = asyncio.get_running_loop()
    end = loop.time() + seconds

    async def ask() -> None:
        group = group_of_size(size)
        while loop.time() < end:
            await scheduler.score(group, caller=caller)
            if loop.time() < end:
                served.note(caller, size)
            await asyncio.sleep(ROUND_TRIP_SECONDS)

    await asyncio.gather(*(ask() for _ in range(at_once)))


async def open_loop(
    scheduler: Scheduler, caller: Caller, served: Served, *, per_second: float, size: int, seconds: float, seed: int
) -> None:
    """Asks at random moments, whatever became of the calls before; who is refused does not come back."""
    dice, loop = random.Random(seed), asyncio.get_running_loop()
    end = loop.time() + seconds
    group = group_of_size(size)

    async def ask() -> None:
        began = loop.time()
        try:
            await scheduler.score(group, caller=caller)
        except QueueFullError:
            served.num_refused += 1
            return
        if loop.time() < end:
            served.note(caller, size)
            served.seconds.append(loop.time() - began)

    calls = []
    while loop.time() < end:
        calls.append(asyncio.create_task(ask()))
        await asyncio.sleep(dice.expovariate(per_second))
    for call in calls:
        call.cancel()
    await asyncio.wait(calls)
