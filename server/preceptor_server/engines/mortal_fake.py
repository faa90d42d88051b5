"""The fake engine as a model in processes of its own would be: it batches by itself, and it dies. For tests."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace

from preceptor_server.config import EngineConfig
from preceptor_server.engines.fake import FakeEngine
from preceptor_server.errors import EngineDiedError
from preceptor_server.types import EngineInfo, GroupColumns, ScoreGroup

RETRY_SECONDS = 0.2
"""When to ask again what was in flight."""
_MAX_TOKENS_IN_FLIGHT = 1000


class MortalFakeEngine(FakeEngine):
    """Dies at the group after `fake_dies_after_groups` of them, with all that is in flight, until closed and loaded."""

    def __init__(self, config: EngineConfig, *, vocabulary_size: int | None = None) -> None:
        super().__init__(config, vocabulary_size=vocabulary_size)
        assert config.fake_dies_after_groups is not None, "else it is a plain FakeEngine"
        self._lifetime = self._num_groups_left = config.fake_dies_after_groups
        self._death = asyncio.Event()

    def load(self) -> None:
        super().load()
        self._num_groups_left = self._lifetime
        self._death = asyncio.Event()

    def info(self) -> EngineInfo:
        return replace(super().info(), batches_itself=True, max_tokens_in_flight=_MAX_TOKENS_IN_FLIGHT)

    async def score(self, batch: Sequence[ScoreGroup]) -> list[GroupColumns]:
        death = self._death  # of this life: an answer that ends in the next one is lost all the same
        self._num_groups_left -= len(batch)
        if self._num_groups_left < 0:
            death.set()
        dying = asyncio.ensure_future(death.wait())
        scoring = asyncio.ensure_future(super().score(batch))
        try:
            await asyncio.wait([dying, scoring], return_when=asyncio.FIRST_COMPLETED)
            if death.is_set():
                raise EngineDiedError("the engine died while it scored: ask again", retry_after_seconds=RETRY_SECONDS)
            return await scoring
        finally:
            dying.cancel()
            scoring.cancel()

    async def wait_until_dead(self) -> None:
        await self._death.wait()
