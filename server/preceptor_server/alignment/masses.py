"""Sums and differences of masses that are held as logarithms. Pure numpy."""

# N = rows, E = entries of a row

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


def sum_equal_neighbours(places_NE: npt.NDArray[np.int64], logprobs_NE: Floats) -> Floats:
    """At the first of each run of equal places in a row the log of the run's mass, elsewhere -inf."""
    is_first_NE = np.ones(places_NE.shape, np.bool_)
    is_first_NE[:, 1:] = places_NE[:, 1:] != places_NE[:, :-1]
    sums_NE = np.full(places_NE.shape, -np.inf)
    if places_NE.size:
        sums_NE[is_first_NE] = np.logaddexp.reduceat(logprobs_NE.ravel(), np.flatnonzero(is_first_NE))
    return sums_NE


def less(logprobs: Floats, taken: Floats) -> Floats:
    """Log of the difference of two masses; -inf where rounding leaves none."""
    ratio = np.exp(np.minimum(taken - np.where(np.isneginf(logprobs), 0.0, logprobs), 0.0))
    with np.errstate(divide="ignore"):
        return np.where(np.isneginf(logprobs), -np.inf, logprobs + np.log1p(-ratio))
