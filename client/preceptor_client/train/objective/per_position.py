"""Asks a part for one array per episode of a step, and checks their shapes and values."""

# N = scored positions of an episode

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from preceptor_client.errors import PreceptorError
from preceptor_client.train.errors import InvalidPartError, InvalidWeightsError
from preceptor_client.train.objective.reduction import WeightArray
from preceptor_client.train.teacher.scored import ScoredEpisode

Columns = Sequence[npt.NDArray[np.floating]]


class Check(Protocol):
    """Makes arrays in float64 of what a part gave, or raises InvalidWeightsError."""

    def __call__(self, columns: Columns, *, scored: Sequence[ScoredEpisode]) -> list[WeightArray]: ...


def asked(give: Callable[[], Columns], *, key: str, check: Check, scored: Sequence[ScoredEpisode]) -> list[WeightArray]:
    """What the part gives, checked. Raises InvalidPartError where it fails, and InvalidWeightsError where what it gives
    does not fit; both begin with `key`."""
    try:
        given = give()
        columns = list(given) if isinstance(given, Iterable) else given
    except PreceptorError:
        raise
    except Exception as error:  # a user's part may fail with anything
        raise InvalidPartError(f"{key} failed: {error!r}") from error
    try:
        return check(columns, scored=scored)
    except InvalidWeightsError as error:
        raise InvalidWeightsError(f"{key}: {error}") from error


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
    if not isinstance(columns, Sequence):
        raise InvalidWeightsError(f"{what}: a {type(columns).__name__} was given: return a list with an array for each")
    if len(columns) != len(nums):
        raise InvalidWeightsError(f"{what}: {len(columns)} arrays for {len(nums)} rollouts: return one for each")
    try:
        checked = [np.asarray(values_N, np.float64) for values_N in columns]
    except (TypeError, ValueError, RuntimeError) as error:  # torch has a RuntimeError for tensors with gradients
        raise InvalidWeightsError(f"{what}: not every array holds numbers ({error}): return numpy arrays") from error
    for index, (values_N, num) in enumerate(zip(checked, nums, strict=True)):
        if values_N.shape != (num,):
            raise InvalidWeightsError(
                f"{what} of rollout {index} have shape {values_N.shape}: it has {num} scored positions"
            )
        if is_wrong(values_N):
            raise InvalidWeightsError(f"{what} of rollout {index} hold {wrong}")
    return checked
