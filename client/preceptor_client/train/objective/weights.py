"""How much each position of a step counts: by the reduction, and by weights that a caller of `train` gives. Numpy only.

The loss of a step is the mean of its positions' losses under these weights, sum(w * loss) / sum(w): so neither
micro-batches nor the scale of the weights change it.
"""

# N = scored positions of a rollout

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt

from preceptor_client.train.errors import InvalidWeightsError
from preceptor_client.train.teacher.scored import ScoredEpisode

WeightArray = npt.NDArray[np.float64]
PositionWeights = Callable[[Sequence[ScoredEpisode]], Sequence[npt.NDArray[np.floating]]]
"""The rollouts of a step to one array [N] each, finite and at least 0: row i belongs to `scores.positions_N[i]`."""


def position_weights(
    scored: Sequence[ScoredEpisode],
    *,
    reduction: Literal["position_mean", "sequence_mean"],
    given: PositionWeights | None = None,
) -> list[WeightArray]:
    """One array per rollout. Raises InvalidWeightsError where the given ones do not fit."""
    nums = [len(one.scores.positions_N) for one in scored]
    each = [1.0 if reduction == "position_mean" else 1.0 / max(1, num) for num in nums]
    weights = [np.full(num, weight) for num, weight in zip(nums, each, strict=True)]
    if given is None or not scored:
        return weights
    extra = _checked(given(scored), nums=nums)
    return [weight_N * extra_N for weight_N, extra_N in zip(weights, extra, strict=True)]


def _checked(weights: Sequence[npt.NDArray[np.floating]], *, nums: Sequence[int]) -> list[WeightArray]:
    if len(weights) != len(nums):
        raise InvalidWeightsError(
            f"position weights: {len(weights)} arrays for {len(nums)} rollouts: return one for each"
        )
    checked = [np.asarray(weights_N, np.float64) for weights_N in weights]
    for index, (weights_N, num) in enumerate(zip(checked, nums, strict=True)):
        if weights_N.shape != (num,):
            raise InvalidWeightsError(
                f"position weights of rollout {index} have shape {weights_N.shape}: it has {num} scored positions"
            )
        if not np.isfinite(weights_N).all() or (weights_N < 0).any():
            raise InvalidWeightsError(f"position weights of rollout {index} hold NaN, infinity or a number below 0")
    return checked
