"""What a student wrote, and the engines that make it write. Knows nothing of teachers or of losses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from preceptor_client.train.data import Example

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollout:
    """One response of the student to one prompt."""

    example: Example
    slot: int
    """Which prompt of the step this answers; the responses to one prompt share it, and are scored as one group."""
    prompt_ids: tuple[int, ...]
    response_ids: tuple[int, ...]
    """Ends with the end token where `finish_reason` is "stop"."""
    finish_reason: FinishReason
