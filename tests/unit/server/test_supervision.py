from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from preceptor.wire import LogprobArray, TokenArray
from preceptor_server.engines.base import Engine, Mortal, UpdatesWeights
from preceptor_server.errors import EngineDiedError, EngineUnavailableError, WeightUpdateError
from preceptor_server.supervision import Backoff, SupervisedEngine, supervise
from preceptor_server.types import EngineInfo, GroupColumns, ScoreGroup

from tests.engines.fake import FakeEngine
from tests.unit.server.groups import group_of

QUICK = Backoff(first_seconds=0.001, max_seconds=0.004)
GROUP = group_of([1], [2, 3])
SECONDS = 10


class MortalEngine:
    """The fake engine's answers, and a life of its own. Attributes steer the next `load`, and note what was done."""

    def __init__(self) -> None:
        self.lives = 0
        self.calls: list[str] = []
        self.failures: list[Exception] = []
        """Raised by `load` first, in order."""
        self.is_wrong = False
        self.may_load = threading.Event()
        self.may_load.set()
        self.most_at_once = 0
        self._at_once = 0
        self._death = asyncio.Event()
        self._fake = FakeEngine()

    def die(self) -> None:
        self._death.set()

    def load(self) -> None:
        self._at_once += 1
        self.most_at_once = max(self.most_at_once, self._at_once)
        self.calls.append("load")
        try:
            assert self.may_load.wait(SECONDS)
            if self.failures:
                raise self.failures.pop(0)
            self._death = asyncio.Event()
            self.lives += 1
        finally:
            self._at_once -= 1

    def info(self) -> EngineInfo:
        assert not self._death.is_set(), "nobody is there"
        return replace(self._fake.info(), revision=f"life {self.lives}")

    async def score(self, batch: Sequence[ScoreGroup]) -> list[GroupColumns]:
        if self._death.is_set():
            raise EngineDiedError("gone", retry_after_seconds=1)
        answers = await self._fake.score(batch)
        if self.is_wrong:
            answers = [tuple(replace(r, sampled_logprobs_N=r.sampled_logprobs_N - 1) for r in a) for a in answers]
        return answers

    async def reference_logprobs(self, token_ids: TokenArray, *, first_row: int = 0) -> LogprobArray:
        return await self._fake.reference_logprobs(token_ids, first_row=first_row)

    async def wait_until_dead(self) -> None:
        await self._death.wait()

    def close(self) -> None:
        self._at_once += 1
        self.most_at_once = max(self.most_at_once, self._at_once)
        self.calls.append("close")
        self._at_once -= 1


class UpdatableEngine(MortalEngine):
    """Notes its updates, and refuses one folder."""

    def __init__(self) -> None:
        super().__init__()
        self.updates: list[tuple[str, str]] = []

    async def load_weights(self, folder: Path) -> Callable[[], Awaitable[None]] | None:
        if folder == Path("bad"):
            raise WeightUpdateError("path", "other shapes")

        async def restore() -> None:
            self.updates.append(("restored", str(folder)))

        self.updates.append(("", str(folder)))
        return restore

    async def load_adapter(self, name: str, folder: Path) -> None:
        self.updates.append((name, str(folder)))

    async def unload_adapter(self, name: str) -> None:
        self.updates.append((name, ""))


class Watched:
    """A supervised engine, and what its supervision said."""

    def __init__(self, engine: SupervisedEngine, news: asyncio.Queue[bool]) -> None:
        self.engine = engine
        self._news = news

    async def says(self, *, is_alive: bool) -> None:
        assert await asyncio.wait_for(self._news.get(), SECONDS) is is_alive


@asynccontextmanager
async def watched(inner: MortalEngine, *, backoff: Backoff = QUICK) -> AsyncIterator[Watched]:
    engine = supervise(inner, backoff=backoff)
    assert isinstance(engine, SupervisedEngine)
    news: asyncio.Queue[bool] = asyncio.Queue()
    engine.load()
    engine.start(on_change=news.put)
    try:
        yield Watched(engine, news)
    finally:
        inner.may_load.set()
        await asyncio.to_thread(engine.close)
        await no_task_is_left()


async def no_task_is_left() -> None:
    async with asyncio.timeout(SECONDS):
        while asyncio.all_tasks() - {asyncio.current_task()}:
            await asyncio.sleep(0.001)


async def refusal_of(engine: Engine) -> EngineUnavailableError:
    with pytest.raises(EngineUnavailableError, match="is being started again") as caught:
        await engine.score([GROUP])
    assert caught.value.reason == "ENGINE_UNAVAILABLE"
    return caught.value


async def test_dead_engine_is_closed_loaded_and_checked_before_it_answers_again() -> None:
    inner = MortalEngine()
    async with watched(inner) as supervision:
        engine = supervision.engine
        before = (await engine.score([GROUP]))[0][0].sampled_logprobs_N.tolist()
        inner.may_load.clear()
        inner.die()
        await supervision.says(is_alive=False)
        await refusal_of(engine)
        with pytest.raises(EngineUnavailableError):
            await engine.reference_logprobs(GROUP.prompt_ids_P)
        assert engine.info().revision == "life 1", "what it said last"
        inner.may_load.set()
        await supervision.says(is_alive=True)
        assert (await engine.score([GROUP]))[0][0].sampled_logprobs_N.tolist() == before
        assert engine.info().revision == "life 2"
        assert inner.calls == ["load", "close", "load"]
    assert inner.calls == ["load", "close", "load", "close"]


async def test_it_dies_as_often_as_it_likes_and_never_starts_twice_at_once() -> None:
    inner = MortalEngine()
    async with watched(inner) as supervision:
        for life in range(2, 7):
            inner.die()
            await supervision.says(is_alive=False)
            await supervision.says(is_alive=True)
            assert supervision.engine.info().revision == f"life {life}"
    assert inner.most_at_once == 1


async def test_failed_restarts_are_logged_with_their_reason_and_tried_again(caplog: pytest.LogCaptureFixture) -> None:
    inner = MortalEngine()
    inner.failures = []
    async with watched(inner) as supervision:
        inner.failures = [RuntimeError("no memory"), OSError("no device"), RuntimeError("no luck")]
        inner.die()
        await supervision.says(is_alive=False)
        await supervision.says(is_alive=True)
        await supervision.engine.score([GROUP])
    assert inner.lives == 2
    for attempt, reason in enumerate(["no memory", "no device", "no luck"], start=1):
        assert f"engine restart failed attempt={attempt}" in caplog.text
        assert reason in caplog.text


async def test_restarted_engine_that_fails_its_self_test_is_not_declared_alive(
    caplog: pytest.LogCaptureFixture,
) -> None:
    inner = MortalEngine()
    async with watched(inner) as supervision:
        inner.is_wrong = True
        inner.die()
        await supervision.says(is_alive=False)
        async with asyncio.timeout(SECONDS):
            while inner.lives < 4:
                await asyncio.sleep(0.001)
        await refusal_of(supervision.engine)
        assert "self-test failed" in caplog.text
        inner.is_wrong = False
        await supervision.says(is_alive=True)
        await supervision.engine.score([GROUP])


async def test_engine_that_dies_again_during_its_self_test_is_started_once_more() -> None:
    class Frail(MortalEngine):
        def load(self) -> None:
            super().load()
            if self.lives == 2:
                self.die()

    inner = Frail()
    async with watched(inner) as supervision:
        inner.die()
        await supervision.says(is_alive=False)
        await supervision.says(is_alive=True)
        assert inner.lives == 3


async def test_dead_engine_that_cannot_even_be_closed_is_loaded_all_the_same() -> None:
    class Stuck(MortalEngine):
        def close(self) -> None:
            super().close()
            if self._death.is_set():
                raise RuntimeError("no process to end")

    inner = Stuck()
    async with watched(inner) as supervision:
        inner.die()
        await supervision.says(is_alive=False)
        await supervision.says(is_alive=True)
        assert inner.lives == 2


async def test_refusal_says_to_come_back_after_the_current_pause() -> None:
    inner = MortalEngine()
    backoff = Backoff(first_seconds=0.001, max_seconds=600)
    async with watched(inner, backoff=backoff) as supervision:
        inner.failures = [RuntimeError("again")] * 10_000
        inner.die()
        await supervision.says(is_alive=False)
        async with asyncio.timeout(SECONDS):
            while len(inner.calls) < 11:  # load, then close and load of five attempts
                await asyncio.sleep(0.001)
        delay = (await refusal_of(supervision.engine)).retry_after_seconds
        assert delay in [0.001 * 2**doublings for doublings in range(4, 14)]


@pytest.mark.parametrize("backoff", [Backoff(first_seconds=600, max_seconds=600), QUICK], ids=["pausing", "loading"])
async def test_close_ends_a_restart_cleanly(backoff: Backoff) -> None:
    inner = MortalEngine()
    async with watched(inner, backoff=backoff) as supervision:
        inner.may_load.clear()
        inner.die()
        await supervision.says(is_alive=False)
        if backoff is QUICK:
            async with asyncio.timeout(SECONDS):
                while inner.calls[-1] != "load" or len(inner.calls) == 1:
                    await asyncio.sleep(0.001)
        closing = asyncio.create_task(asyncio.to_thread(supervision.engine.close))
        await asyncio.sleep(0.02)
        inner.may_load.set()
        await asyncio.wait_for(closing, SECONDS)
        assert inner.calls[-1] == "close"
        await no_task_is_left()
        await refusal_of(supervision.engine)
    assert inner.most_at_once == 1


async def test_death_before_supervision_starts_is_noticed_when_it_does() -> None:
    inner = MortalEngine()
    engine = supervise(inner, backoff=QUICK)
    assert isinstance(engine, SupervisedEngine)
    engine.load()
    inner.die()
    news: asyncio.Queue[bool] = asyncio.Queue()
    engine.start(on_change=news.put)
    assert [await asyncio.wait_for(news.get(), SECONDS) for _ in range(2)] == [False, True]
    engine.close()
    await no_task_is_left()


def test_engine_that_cannot_die_is_left_as_it_is() -> None:
    engine = FakeEngine()
    assert supervise(engine) is engine
    assert not isinstance(engine, Mortal)


async def test_what_is_supervised_updates_weights_exactly_if_the_engine_inside_does() -> None:
    assert not isinstance(supervise(MortalEngine()), UpdatesWeights)
    inner = UpdatableEngine()
    async with watched(inner) as supervision:
        engine = supervision.engine
        assert isinstance(engine, UpdatesWeights)
        restore = await engine.load_weights(Path("step-3"))
        assert restore is not None
        await restore()
        await engine.load_adapter("maths", Path("lora"))
        await engine.unload_adapter("maths")
        with pytest.raises(WeightUpdateError, match="other shapes"):
            await engine.load_weights(Path("bad"))
        assert inner.updates == [("", "step-3"), ("restored", "step-3"), ("maths", "lora"), ("maths", "")]
        inner.may_load.clear()
        inner.die()
        await supervision.says(is_alive=False)
        with pytest.raises(EngineUnavailableError):
            await engine.load_weights(Path("step-4"))
        with pytest.raises(EngineUnavailableError):
            await engine.load_adapter("maths", Path("lora"))
        with pytest.raises(EngineUnavailableError):
            await engine.unload_adapter("maths")
        assert len(inner.updates) == 4


def test_pauses_double_from_one_second_to_a_minute() -> None:
    backoff = Backoff()
    delays = [backoff.delay_seconds(attempt) for attempt in (1, 2, 3, 4, 5, 6, 7, 8, 10_000)]
    assert delays == [1, 2, 4, 8, 16, 32, 60, 60, 60]


async def test_supervision_that_fails_is_told(caplog: pytest.LogCaptureFixture) -> None:
    class Unreadable(MortalEngine):
        async def wait_until_dead(self) -> None:
            raise RuntimeError("no pulse to feel")

    async with watched(Unreadable()):
        await no_task_is_left()
    assert "supervision ended" in caplog.text
    assert caplog.text.count("RuntimeError: no pulse to feel") == 1
