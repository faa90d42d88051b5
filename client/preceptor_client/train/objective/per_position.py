"""What a part, which may be a user's own, gives for the positions of a step: one array per episode, checked."""

# N = scored positions of an episode

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from preceptor_client.errors import PreceptorError
from preceptor_client.train.errors import InvalidPartError, InvalidWeightsError
from preceptor_client.train.objective.reduction import WeightArray
from preceptor_client.train.teacher.scored import ScoredEpisode

Columns = Sequence[npt.NDArray[np.floating]]


def asked(give: Callable[[], Columns], *, key: str) -> Columns:
    """What the part gives. Raises InvalidPartError, which begins with `key`, where it fails."""
    try:
        return give()
    except PreceptorError:
        raise
    except Exception as error:
        raise InvalidPartError(f"{key} failed: {error!r}") from error


def checked_columns(
    columns: Columns,
    *,
    what: str,
    scored: Sequence[ScoredEpisode],
    is_wrong: Callable[[WeightArray], bool],
    wrong: str,
) -> list[WeightArray]:
    """The arrays in float64. Raises InvalidWeightsError, which calls them `what`, where they are not one [N] per
    episode, or where `is_wrong` of one, which then hold `wrong`."""
    nums = [len(one.scores.positions_N) for one in scored]
    if len(columns) != len(nums):
        raise InvalidWeightsError(f"{what}: {len(columns)} arrays for {len(nums)} rollouts: return one for each")
    checked = [np.asarray(values_N, np.float64) for values_N in columns]
    for index, (values_N, num) in enumerate(zip(checked, nums, strict=True)):
        if values_N.shape != (num,):
            raise InvalidWeightsError(
                f"{what} of rollout {index} have shape {values_N.shape}: it has {num} scored positions"
            )
        if is_wrong(values_N):
            raise InvalidWeightsError(f"{what} of rollout {index} hold {wrong}")
    return checked
