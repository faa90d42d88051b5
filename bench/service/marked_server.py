"""`preceptor-server` whose fake engine raises where a response begins with BAD_TOKEN.

python -m bench.service.marked_server takes its arguments. As with a model that fails on one input, the whole forward is
lost.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from typing import Any

from preceptor_server import cli
from preceptor_server.types import GroupColumns, ScoreGroup

from bench.service.engines import BAD_TOKEN

PLACES = ("tests.engines.fake", "preceptor_server.engines.fake")
"""Of the fake engine; the second one in trees up to commit 7d58a24."""


def fake_engine() -> Any:  # Any: a class of either place
    for place in PLACES:
        try:
            return importlib.import_module(place).FakeEngine
        except ModuleNotFoundError:
            continue
    raise SystemExit(f"there is no fake engine: looked for {' and '.join(PLACES)}")


def mark(engine: Any) -> None:  # Any: as above
    """Makes it raise after the time that the forward takes."""
    unmarked = engine.score

    async def score(self: Any, batch: Sequence[ScoreGroup]) -> list[GroupColumns]:  # Any: as above
        columns: list[GroupColumns] = await unmarked(self, batch)
        if any(response.ids_T[0] == BAD_TOKEN for group in batch for response in group.responses):
            raise FloatingPointError("the marked token was in the batch")
        return columns

    engine.score = score


if __name__ == "__main__":
    mark(fake_engine())
    sys.exit(cli.main())
