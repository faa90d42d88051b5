"""What the server asks of a model. No engine knows of gRPC, of tokenizers, or of clients."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

from preceptor.wire import LogprobArray, TokenArray

from preceptor_server.types import EngineInfo, GroupColumns, ScoreGroup

Restore = Callable[[], Awaitable[None]]
"""Brings back the weights that were replaced, and their revision. Called at most once, before anything else is loaded;
dropped once the new weights are trusted, which frees what it holds."""


class Engine(Protocol):
    """A model that scores batches of groups.

    `load` is called once, before anything else; it may take minutes. `score` may be called concurrently up to
    `info().max_concurrent_batches` times and answers in the order of its input; a group with `batch_invariant` is
    always alone in its batch. `reference_logprobs` is the oracle of the self-test: logprobs after each token of one
    sequence from the index `first_row` on, [T - first_row, V], by the plainest path. `close` frees what `load` took.
    """

    def load(self) -> None: ...

    def info(self) -> EngineInfo: ...

    async def score(self, batch: Sequence[ScoreGroup]) -> list[GroupColumns]: ...

    async def reference_logprobs(self, token_ids: TokenArray, *, first_row: int = 0) -> LogprobArray: ...

    def close(self) -> None: ...


@runtime_checkable
class FallsBack(Protocol):
    """An engine that has a second way to compute, slower and plainer."""

    def fall_back(self, reason: str) -> bool:
        """Takes to it, after the first has failed the self-test for `reason`; False where there is none left."""


@runtime_checkable
class Divides(Protocol):
    """An engine that computes a large group slice by slice, so that others need not wait for all of it."""

    def divide(self, group: ScoreGroup, *, max_cost: float) -> Division:
        """Slices whose tokens cost at most `max_cost` by EngineInfo.context_costs, where the model allows it. How a
        group is cut depends on the group, `max_cost` and the settings alone. Raises EngineOutOfMemoryError where no
        slicing fits."""


class Division(Protocol):
    """A group that is scored slice by slice, in order; other batches may run between two slices."""

    @property
    def next_tokens(self) -> int:
        """Tokens that the next slice computes; 0 = done."""

    @property
    def next_cost(self) -> float:
        """What these cost by EngineInfo.context_costs."""

    async def advance(self) -> GroupColumns | None:
        """Computes one slice; the columns after the last. Raises what `score` raises, and EngineUnavailableError where
        the weights have changed since the first slice; it is closed then."""

    def close(self) -> None:
        """Frees what it holds; also when given up half way."""


@runtime_checkable
class DividesPlainly(Divides, Protocol):
    """Which has a second way to divide, slower and plainer."""

    def divide_plainly(self, reason: str) -> bool:
        """Takes to it, after the first has failed the self-test for `reason`; False where there is none left."""


@runtime_checkable
class Mortal(Protocol):
    """An engine whose model lives in processes that may end by themselves.

    `score` then raises EngineDiedError for what was in flight; `close` followed by `load` brings a new one to life.
    """

    async def wait_until_dead(self) -> None:
        """Returns once the engine can answer no more; also when nothing was asked of it."""


@runtime_checkable
class MortalEngine(Engine, Mortal, Protocol):
    """Both: what `supervision.py` looks after."""


@runtime_checkable
class UpdatesWeights(Protocol):
    """An engine whose weights can be replaced while it serves. `info` tells the new revision afterwards.

    Each raises WeightUpdateError where the weights cannot be used, and leaves the old ones as they were. The caller
    sees to it that nothing is in flight during `load_weights`.
    """

    async def load_weights(self, folder: Path) -> Restore | None:
        """The model's own weights, as `save_pretrained` writes them. Returns the way back, for weights that turn out to
        be wrong; None from an engine that has none."""

    async def load_adapter(self, name: str, folder: Path) -> None:
        """A LoRA adapter, as peft writes it; one of that name is replaced."""

    async def unload_adapter(self, name: str) -> None:
        """Takes an adapter away; what is in flight with it is finished first."""
