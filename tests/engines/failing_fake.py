"""The fake engine, which raises where a response begins with BAD_TOKEN: the whole forward is lost, as a model's is."""

from __future__ import annotations

from collections.abc import Sequence

from preceptor_server.types import GroupColumns, ScoreGroup

from tests.engines.fake import FakeEngine

FAILING_KIND = "tests.engines.failing_fake:FailingFakeEngine"
BAD_TOKEN = 13


class FailingFakeEngine(FakeEngine):
    """Fails after the time that the forward takes."""

    async def score(self, batch: Sequence[ScoreGroup]) -> list[GroupColumns]:
        columns = await super().score(batch)
        if any(response.ids_T[0] == BAD_TOKEN for group in batch for response in group.responses):
            raise FloatingPointError("the marked token was in the batch")
        return columns
