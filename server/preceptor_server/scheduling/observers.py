"""What a scheduler tells of its batches, for metrics and traces."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

OK = "ok"


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchDone:
    """One forward: of a batch, of a slice of a large group, or of a group that the engine batches by itself."""

    num_groups: int
    num_tokens: int
    """Of the groups, or of the slice, each prompt counted for each group."""
    num_reused_tokens: int
    """Of these, what was not computed, since another group begins alike."""
    max_tokens: int
    """Of a full batch; 0 where the engine makes its batches by itself."""
    seconds: float
    reason: str
    """OK, or the reason of the error."""
    computed_by_tenant: Mapping[str, int]
    """Computed tokens, which add up to num_tokens - num_reused_tokens."""


class BatchObserver(Protocol):
    """Whoever counts forwards. It is called on the event loop, so it must be quick."""

    def batch_done(self, done: BatchDone) -> None: ...
