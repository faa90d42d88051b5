"""`preceptor-server` whose fake engine raises where a response begins with BAD_TOKEN.

python -m bench.service.marked_server takes its arguments. As with a model that fails on one input, the whole forward is
lost.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from preceptor_server import cli
from preceptor_server.engines.fake import FakeEngine
from preceptor_server.types import GroupColumns, ScoreGroup

from bench.service.engines import BAD_TOKEN

_score = FakeEngine.score


async def score(self: FakeEngine, batch: Sequence[ScoreGroup]) -> list[GroupColumns]:
    """Fails after the time that the forward takes."""
    columns = await _score(self, batch)
    if any(response.ids_T[0] == BAD_TOKEN for group in batch for response in group.responses):
        raise FloatingPointError("the marked token was in the batch")
    return columns


if __name__ == "__main__":
    FakeEngine.score = score  # type: ignore[method-assign]  # a tree whose engine is chosen by name needs no such thing
    sys.exit(cli.main())
