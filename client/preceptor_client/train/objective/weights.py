"""Defines the seam for position weights, and the built-in rules. Numpy only.

Under the reductions that are means neither micro-batches nor the scale of the weights change the loss.
"""

# N = scored positions of an episode

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from preceptor_client.train.objective.context import StepContext
from preceptor_client.train.objective.per_position import Columns, checked_columns
from preceptor_client.train.objective.reduction import WeightArray
from preceptor_client.train.teacher.scored import ScoredEpisode

PositionWeights = Callable[[Sequence[ScoredEpisode]], Sequence[npt.NDArray[np.floating]]]
"""The rollouts of a step to one array [N] each, finite and at least 0: row i belongs to `scores.positions_N[i]`."""


class WeightRule(Protocol):
    """Weighs positions. One class, named in TOML: weights.kind = "package.module:Name"."""

    def weigh(self, scored: Sequence[ScoredEpisode], at: StepContext) -> Sequence[npt.NDArray[np.floating]]:
        """One array [N] per episode, finite and at least 0: row i belongs to `scores.positions_N[i]`."""
        ...


class FirstTokens:
    """1 for the first tokens that the student wrote in each episode, 0 after them."""

    def __init__(self, *, num_tokens: int) -> None:
        if num_tokens < 1:
            raise ValueError(f"num_tokens={num_tokens} must be at least 1")
        self._num_tokens = num_tokens

    def weigh(self, scored: Sequence[ScoredEpisode], at: StepContext) -> list[WeightArray]:
        del at
        return [
            (np.cumsum(one.episode.is_policy_T)[one.scores.positions_N] <= self._num_tokens).astype(np.float64)
            for one in scored
        ]


class CalledWeights:
    """Weights from a function, as `train` takes one."""

    def __init__(self, weigh: PositionWeights) -> None:
        self._weigh = weigh

    def weigh(self, scored: Sequence[ScoredEpisode], at: StepContext) -> Sequence[npt.NDArray[np.floating]]:
        del at
        return self._weigh(scored)


def checked_weights(columns: Columns, *, scored: Sequence[ScoredEpisode]) -> list[WeightArray]:
    """What a rule gave. Raises InvalidWeightsError where it does not fit."""
    return checked_columns(
        columns,
        what="position weights",
        scored=scored,
        is_wrong=lambda weights_N: not np.isfinite(weights_N).all() or bool((weights_N < 0).any()),
        wrong="NaN, infinity or a number below 0",
    )
