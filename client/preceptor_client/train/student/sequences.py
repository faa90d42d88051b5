"""Defines a sequence to run the student on, and its scored positions. Numpy only."""

# N = scored positions

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ScoredSequence:
    """A prompt, a response, and the indices of the response tokens that have a score."""

    prompt_ids: Sequence[int]
    response_ids: Sequence[int]
    positions_N: npt.NDArray[np.int64]
