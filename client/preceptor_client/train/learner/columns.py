"""Defines the columns that a step measures of the student at each episode's scored positions. Imports no torch."""

# N = scored positions of one rollout

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

FloatColumn = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class StudentColumns:
    """One rollout before the update; row i belongs to `ScoredEpisode.scores.positions_N[i]`. NaN is "not measured"."""

    losses_N: FloatColumn
    masses_N: FloatColumn
    """The student's probability, of its whole vocabulary, inside the teacher's top K."""
    overlaps_N: FloatColumn
    """Share of the teacher's top K that is in the student's top K."""


def unmeasured(num_positions: int) -> StudentColumns:
    """Of a rollout that no forward has seen."""
    nothing_N = np.full(num_positions, np.nan, np.float32)
    return StudentColumns(losses_N=nothing_N, masses_N=nothing_N, overlaps_N=nothing_N)
