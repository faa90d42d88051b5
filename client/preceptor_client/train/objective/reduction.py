"""Reduces the losses of a step's positions to one number. Numpy only; computes neither weights nor losses.

    loss of the step = sum over positions of weight * loss / denominator

The denominator is that of the whole step, so micro-batches do not change the loss.
"""

# N = scored positions of an episode

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

WeightArray = npt.NDArray[np.float64]
ReductionKind = Literal["position_mean", "sequence_mean", "position_scaled", "fixed_scale"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Term:
    """One term of a step's loss: how much each position counts in it."""

    weights: Sequence[WeightArray]
    """One array [N] per episode of the step, the term's own coefficient included."""
    denominator: float
    """What the sum of weight * loss is divided by; 0 where nothing counts."""

    @property
    def is_empty(self) -> bool:
        """Whether nothing counts: the term is left out then."""
        return not any(weights_N.any() for weights_N in self.weights)

    def of(self, indices: Sequence[int]) -> WeightArray:
        """Weights of some of the episodes, side by side."""
        return np.concatenate([self.weights[index] for index in indices])


@dataclass(frozen=True, slots=True, kw_only=True)
class Reduction:
    """position_mean: sum(w loss) / sum(w). sequence_mean: the same with w / N of the episode in place of w.
    position_scaled: sum(w loss) / number of scored positions. fixed_scale: sum(w loss) / scale."""

    kind: ReductionKind = "position_mean"
    scale: float | None = None
    """For fixed_scale: a number of positions."""

    def __post_init__(self) -> None:
        if (self.kind == "fixed_scale") != (self.scale is not None):
            raise ValueError("the reduction fixed_scale and a scale go together: give both, or neither")

    @property
    def of_measurement(self) -> Reduction:
        """For other positions than those of a step, to whose number a fixed scale does not belong: their mean."""
        return Reduction() if self.kind == "fixed_scale" else self

    def term(
        self, nums: Sequence[int], *, given: Sequence[WeightArray] | None = None, coefficient: float = 1.0
    ) -> Term:
        """The term of episodes with so many scored positions each; `given` weights multiply, and so does the
        `coefficient`, of which the denominator knows nothing."""
        each = [1.0 / max(1, num) if self.kind == "sequence_mean" else 1.0 for num in nums]
        weights = [np.full(num, weight) for num, weight in zip(nums, each, strict=True)]
        if given is not None:
            weights = [weight_N * given_N for weight_N, given_N in zip(weights, given, strict=True)]
        denominator = self._denominator(nums, weights)
        return Term(weights=[coefficient * weights_N for weights_N in weights], denominator=denominator)

    def _denominator(self, nums: Sequence[int], weights: Sequence[WeightArray]) -> float:
        if self.scale is not None:
            return self.scale
        if self.kind == "position_scaled":
            return float(sum(nums))
        return sum(float(weights_N.sum()) for weights_N in weights)
