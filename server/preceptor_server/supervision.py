"""Looks after an engine whose processes may die: refuses while it is dead, and brings it back to life.

Knows nothing of gRPC: whoever wants to know of life and death hands over a callback.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from preceptor.wire import LogprobArray, TokenArray

from preceptor_server.engines.base import Engine, MortalEngine, Restore, UpdatesWeights
from preceptor_server.errors import EngineUnavailableError
from preceptor_server.selftest import check_engine
from preceptor_server.types import EngineInfo, GroupColumns, ScoreGroup

logger = logging.getLogger(__name__)

OnChange = Callable[[bool], Awaitable[None]]
"""Told whether the engine is alive, whenever that changes."""

FIRST_DELAY_SECONDS = 1.0
MAX_DELAY_SECONDS = 60.0
_MAX_DOUBLINGS = 32
"""2.0 ** 1100 overflows, and an engine may stay dead for days."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Backoff:
    """Pauses before attempts to start again: each twice the one before, up to a limit."""

    first_seconds: float = FIRST_DELAY_SECONDS
    max_seconds: float = MAX_DELAY_SECONDS

    def delay_seconds(self, attempt: int) -> float:
        """Before the given attempt, which counts from 1."""
        doubled: float = self.first_seconds * 2.0 ** min(attempt - 1, _MAX_DOUBLINGS)
        return min(self.max_seconds, doubled)


_DEFAULT_BACKOFF = Backoff()


def supervise(engine: Engine, *, backoff: Backoff = _DEFAULT_BACKOFF) -> Engine:
    """The engine under supervision if it can die, else the engine itself. What is supervised can update its weights
    exactly if the engine inside can: `isinstance(..., UpdatesWeights)` holds for both or for neither."""
    if not isinstance(engine, MortalEngine):
        return engine
    if isinstance(engine, UpdatesWeights):
        return _SupervisedUpdatableEngine(engine, weights=engine, backoff=backoff)
    return SupervisedEngine(engine, backoff=backoff)


class SupervisedEngine:
    """The Engine protocol around an engine that can die.

    A restarted engine is as the configuration says: weights and adapters that were loaded since are lost, and `info`
    tells the revision that it starts with. While it is dead `info` says what it said last.
    """

    def __init__(self, engine: MortalEngine, *, backoff: Backoff = _DEFAULT_BACKOFF) -> None:
        self._engine = engine
        self._backoff = backoff
        self._info: EngineInfo | None = None
        self._is_alive = False
        self._is_closed = False
        self._delay_seconds = backoff.delay_seconds(1)
        self._changing = threading.Lock()
        """Held by whichever thread loads or closes the engine: never two at once."""
        self._watch_task: asyncio.Task[None] | None = None

    def load(self) -> None:
        with self._changing:
            self._engine.load()
        self._come_alive()

    def start(self, *, on_change: OnChange) -> None:
        """Watches from here on, until `close`. The engine is loaded, and checked by whoever loaded it."""
        self._watch_task = asyncio.get_running_loop().create_task(self._watch(on_change), name="supervision")
        self._watch_task.add_done_callback(_tell_end)

    def info(self) -> EngineInfo:
        if self._is_alive:
            self._info = self._engine.info()
        assert self._info is not None, "load() comes first"
        return self._info

    async def score(self, batch: Sequence[ScoreGroup]) -> list[GroupColumns]:
        self._refuse_while_dead()
        return await self._engine.score(batch)

    async def reference_logprobs(self, token_ids: TokenArray, *, first_row: int = 0) -> LogprobArray:
        self._refuse_while_dead()
        return await self._engine.reference_logprobs(token_ids, first_row=first_row)

    def close(self) -> None:
        """Ends a restart too: at once where it waits or checks itself, after the load where it loads."""
        self._is_closed = True
        self._is_alive = False
        if self._watch_task is not None:
            # Before the engine closes, so that its end is not taken for a death.
            self._watch_task.get_loop().call_soon_threadsafe(self._watch_task.cancel)
        with self._changing:
            self._engine.close()

    def _refuse_while_dead(self) -> None:
        if not self._is_alive:
            raise EngineUnavailableError(
                "the engine died and is being started again: ask again later", retry_after_seconds=self._delay_seconds
            )

    async def _watch(self, on_change: OnChange) -> None:
        while True:
            await self._engine.wait_until_dead()
            self._is_alive = False
            died = time.monotonic()
            logger.error("engine died first_restart_in_seconds=%g", self._backoff.delay_seconds(1))
            await on_change(False)
            await self._revive()
            logger.info("engine alive again seconds=%.1f revision=%s", time.monotonic() - died, self.info().revision)
            await on_change(True)

    async def _revive(self) -> None:
        """Returns once the engine is loaded and has passed its self-test, however often that takes."""
        for attempt in itertools.count(1):
            self._delay_seconds = self._backoff.delay_seconds(attempt)
            await asyncio.sleep(self._delay_seconds)
            try:
                await asyncio.to_thread(self._reload)
                await check_engine(self._engine)
            except Exception as error:  # whatever went wrong, the next attempt may go right
                following = self._backoff.delay_seconds(attempt + 1)
                logger.exception("engine restart failed attempt=%d next_in_seconds=%g: %s", attempt, following, error)
            else:
                self._come_alive()
                return

    def _reload(self) -> None:
        with self._changing:
            if self._is_closed:
                return
            try:
                self._engine.close()
            except Exception:  # of what is dead already; what it still holds is missed by `load`, which says so
                logger.exception("dead engine did not close")
            self._engine.load()

    def _come_alive(self) -> None:
        self._info = self._engine.info()
        self._is_alive = True


def _tell_end(watch: asyncio.Task[None]) -> None:
    """By a fault of ours, or of an engine that cannot say whether it lives: nobody else looks at the task."""
    if not watch.cancelled() and (error := watch.exception()) is not None:
        logger.critical("supervision ended: the engine is not started again when it dies", exc_info=error)


class _SupervisedUpdatableEngine(SupervisedEngine):
    """UpdatesWeights as well."""

    def __init__(self, engine: MortalEngine, *, weights: UpdatesWeights, backoff: Backoff) -> None:
        super().__init__(engine, backoff=backoff)
        self._weights = weights

    async def load_weights(self, folder: Path) -> Restore | None:
        self._refuse_while_dead()
        return await self._weights.load_weights(folder)

    async def load_adapter(self, name: str, folder: Path) -> None:
        self._refuse_while_dead()
        await self._weights.load_adapter(name, folder)

    async def unload_adapter(self, name: str) -> None:
        self._refuse_while_dead()
        await self._weights.unload_adapter(name)
