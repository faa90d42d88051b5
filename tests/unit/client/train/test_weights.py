from __future__ import annotations

import math

import numpy as np
import pytest
from preceptor_client.train.errors import InvalidWeightsError

from tests.unit.client.train.assembled import position_weights
from tests.unit.client.train.rollouts import scored_rollout

SCORED = [scored_rollout(num_positions=num) for num in (3, 0, 1)]


def test_positions_or_responses_count_the_same() -> None:
    by_position = position_weights(SCORED, reduction="position_mean")
    assert [weights_N.tolist() for weights_N in by_position] == [[1, 1, 1], [], [1]]
    by_sequence = position_weights(SCORED, reduction="sequence_mean")
    assert [float(weights_N.sum()) for weights_N in by_sequence] == pytest.approx([1, 0, 1])


def test_given_weights_multiply_those_of_the_reduction() -> None:
    given = [np.array([0.0, 1.0, 2.0]), np.zeros(0), np.array([0.5])]
    weights = position_weights(SCORED, reduction="sequence_mean", given=lambda _: given)
    assert [weights_N.tolist() for weights_N in weights] == [pytest.approx([0, 1 / 3, 2 / 3]), [], [0.5]]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([np.ones(3)], "1 arrays for 3 rollouts: return one for each"),
        ([np.ones(3), np.ones(0), np.ones(2)], r"rollout 2 have shape \(2,\): it has 1 scored positions"),
        ([np.ones(3), np.ones(0), np.array([math.nan])], "rollout 2 hold NaN, infinity or a number below 0"),
        ([np.array([1.0, -1.0, 1.0]), np.ones(0), np.ones(1)], "rollout 0 hold NaN"),
        ([np.array([1.0, math.inf, 1.0]), np.ones(0), np.ones(1)], "rollout 0 hold NaN"),
    ],
)
def test_weights_that_do_not_fit_are_refused(given: list[np.ndarray], message: str) -> None:
    with pytest.raises(InvalidWeightsError, match=message):
        position_weights(SCORED, reduction="position_mean", given=lambda _: given)
