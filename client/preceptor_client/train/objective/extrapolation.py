"""Defines the seam for the strength of the extrapolation at each position, and one rule. Numpy only."""

# N = scored positions of an episode

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from preceptor_client.train.objective.context import StepContext
from preceptor_client.train.objective.per_position import Columns, checked_columns
from preceptor_client.train.objective.reduction import WeightArray
from preceptor_client.train.teacher.scored import ScoredEpisode


class StrengthRule(Protocol):
    """Gives lambda of ExOPD, which objective.extrapolation is elsewhere. One class, named in TOML:
    objective.extrapolation_rule = "package.module:Name"."""

    def strength(self, scored: Sequence[ScoredEpisode], at: StepContext) -> Sequence[npt.NDArray[np.floating]]:
        """One array [N] per episode, finite and above 0: row i belongs to `scores.positions_N[i]`."""
        ...


class CappedWhenSure:
    """A strength where the teacher is unsure, and at most 1 where it is sure: where its likeliest token has more than
    `max_probability`, or its entropy is below `min_entropy`.

    arXiv 2605.08737 (Extrapolation Cliff), from a note on it: a target beyond a teacher that is sure is a cliff. The
    entropy counts only where the teacher gives it.
    """

    def __init__(self, *, strength: float = 1.25, max_probability: float = 0.9, min_entropy: float = 0.5) -> None:
        """`min_entropy` is in nats."""
        if not 0 < strength <= 4:
            raise ValueError(f"strength={strength} must be above 0 and at most 4")
        self._strength = strength
        self._max_probability = max_probability
        self._min_entropy = min_entropy

    def strength(self, scored: Sequence[ScoredEpisode], at: StepContext) -> list[WeightArray]:
        del at
        return [self._of(one) for one in scored]

    def _of(self, one: ScoredEpisode) -> WeightArray:
        # Of the teacher's own answer: rows are sorted, and the support of the loss may lack the likeliest token.
        is_sure_N = np.exp(one.scores.support_logprobs_NK[:, 0].astype(np.float64)) > self._max_probability
        if one.scores.entropies_N is not None:
            is_sure_N |= one.scores.entropies_N < self._min_entropy
        return np.where(is_sure_N, min(self._strength, 1.0), self._strength)


def checked_strengths(columns: Columns, *, scored: Sequence[ScoredEpisode]) -> list[WeightArray]:
    """What a rule gave. Raises InvalidWeightsError where it does not fit."""
    return checked_columns(
        columns,
        what="strengths of the extrapolation",
        scored=scored,
        is_wrong=lambda strengths_N: not np.isfinite(strengths_N).all() or bool((strengths_N <= 0).any()),
        wrong="NaN, infinity or a number that is not above 0",
    )
