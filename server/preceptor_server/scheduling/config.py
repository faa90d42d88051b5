"""Settings of a scheduler."""

from __future__ import annotations

from preceptor.settings import Section
from pydantic import Field


class SchedulerConfig(Section):
    """How requests become batches."""

    max_batch_tokens: int = Field(4096, ge=1)
    """Tokens of one forward: a prefix that groups share is counted once; a token far behind the beginning of its
    context, large supports and candidates count as more. A larger group is computed in several forwards, between which
    others have their turn, where the engine can do that."""
    max_queue_tokens: int = Field(1_000_000, ge=1)
    """Tokens that may wait at once; beyond it callers are told to come back later. One tenant may fill two thirds."""
    max_queue_bytes: int = Field(1024**3, ge=1)
    """Bytes of the groups that may wait at once, in the same way."""
    max_queue_groups: int = Field(16_384, ge=1)
    """Groups that may wait at once, in the same way."""
    batch_window_ms: float = Field(2.0, ge=0)
    """How long an idle server waits for company before it starts a batch that is not full, in milliseconds."""
    max_divided_groups: int = Field(4, ge=1)
    """Large groups that may be partly computed at once; each keeps the state of its prompt in memory."""
    bad_group_seconds: float = Field(300.0, ge=0)
    """How long a group that made the model fail is refused when it is sent again, in seconds."""
