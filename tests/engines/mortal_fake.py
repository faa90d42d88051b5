"""The fake engine as a model in processes of its own would be: it batches by itself, and it dies."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import replace

from preceptor_server.errors import EngineDiedError
from preceptor_server.types import EngineInfo, GroupColumns, ScoreGroup

from tests.engines.fake import FakeEngine

MORTAL_FAKE_KIND = "tests.engines.mortal_fake:MortalFakeEngine"
RETRY_SECONDS = 0.2
"""When to ask again what was in flight."""
_MAX_TOKENS_IN_FLIGHT = 1000


class MortalFakeEngine(FakeEngine):
    """Dies at the group after `dies_after_groups` of them, the start-up self-test's among them, with all that is in
    flight, until closed and loaded."""

    def __init__(
        self,
        *,
        dies_after_groups: int,
        vocabulary_size: int = 256,
        tokenizer_size: int | None = None,
        max_model_len: int | None = None,
        seconds_per_token: float = 0.0,
    ) -> None:
        super().__init__(
            vocabulary_size=vocabulary_size,
            tokenizer_size=tokenizer_size,
            max_model_len=max_model_len,
            seconds_per_token=seconds_per_token,
        )
        self._lifetime = self._num_groups_left = dies_after_groups
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


def mortal_fake_arguments(*, dies_after_groups: int, **options: int | float) -> list[str]:
    """The command line of a server with it."""
    given = {"dies_after_groups": dies_after_groups, **options}
    return ["--engine.kind", MORTAL_FAKE_KIND, "--engine.options", json.dumps(given)]
