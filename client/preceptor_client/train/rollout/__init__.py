"""What a student wrote, and the engines that make it write. Knows nothing of teachers or of losses."""

# T = tokens of the response, K = support size

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt
from preceptor.wire import TokenArray

from preceptor_client.train.data import Example

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class StudentView:
    """What the student said while it wrote: its distribution before each token of its response, over the whole
    vocabulary and before top-p, at the temperature of the loss (not that of the sampling)."""

    logprobs_T: npt.NDArray[np.float32]
    """Of the token that was written."""
    entropies_T: npt.NDArray[np.float32]
    """Nats."""
    top_ids_TK: TokenArray | None = None
    """The student's likeliest tokens, by descending logprob; None unless the support needs them."""


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
    student: StudentView = field(compare=False)
