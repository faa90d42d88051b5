"""What the server asks of a model. No engine knows of gRPC, of tokenizers, or of clients."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from preceptor.wire import LogprobArray, TokenArray

from preceptor_server.types import EngineInfo, GroupColumns, ScoreGroup


class Engine(Protocol):
    """A model that scores batches of groups.

    `load` is called once, before anything else; it may take minutes. `score` may be called concurrently up to
    `info().max_concurrent_batches` times and answers in the order of its input; a group with `batch_invariant` is
    always alone in its batch. `reference_logprobs` is the oracle of the self-test: logprobs [T, V] after each token of
    one sequence, by the plainest path. `close` frees what `load` took.
    """

    def load(self) -> None: ...

    def info(self) -> EngineInfo: ...

    async def score(self, batch: Sequence[ScoreGroup]) -> list[GroupColumns]: ...

    async def reference_logprobs(self, token_ids: TokenArray) -> LogprobArray: ...

    def close(self) -> None: ...
