"""A response of the student as the teacher reads it: what to score, and which row answers for which position."""

# T = tokens of a response (the student's), M = tokens that the teacher reads for it, N = positions to be scored

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import numpy as np
import numpy.typing as npt
from preceptor.wire import PositionStatus, StatusArray, TokenArray

from preceptor_server.alignment.types import Alignment, IdMap


class Conversion(IntEnum):
    """Which map of the pairing turns a row's tokens into the student's."""

    PLAIN = 0
    """Both sides are at the same byte."""
    WITH_SPACE = 1
    """The teacher wrote a space into the token before, and the student's token begins with it."""
    WITHOUT_SPACE = 2
    """The student wrote a space into the token before, and the teacher's token begins with it."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Reading:
    """A response as the teacher reads it."""

    teacher_ids_M: TokenArray
    wanted_M: npt.NDArray[np.bool_]
    """The teacher tokens before which the engine is to be asked."""
    status_T: StatusArray
    """OK where a row will answer, unless the model's numbers turn out to be none."""
    rows_N: npt.NDArray[np.int64]
    """For each position with status OK, the teacher token before which the teacher is asked."""
    path_ends_N: npt.NDArray[np.int64]
    """The teacher's own way to where the student's token ends, or just beyond: its tokens rows_N to path_ends_N."""
    sampled_ids_N: TokenArray
    """The student's own tokens there."""
    conversions_N: npt.NDArray[np.uint8]
    """Values of Conversion."""

    @property
    def positions_N(self) -> npt.NDArray[np.int64]:
        return np.flatnonzero(self.status_T == PositionStatus.OK)


def convert(
    alignment: Alignment,
    teacher_ids_N: TokenArray,
    conversions_N: npt.NDArray[np.uint8],
    *,
    merges_end_tokens: bool = True,
) -> IdMap:
    """Where teacher ids land in the student's vocabulary, or NO_PLACE, or END; [N], or [N, anything]."""
    pairing = alignment.pairing
    places_N = (alignment.projection_V if merges_end_tokens else pairing.projection_V)[teacher_ids_N]
    for conversion, map_V in (
        (Conversion.WITH_SPACE, pairing.with_space_V),
        (Conversion.WITHOUT_SPACE, pairing.without_space_V),
    ):
        is_so_N = conversions_N == conversion
        if is_so_N.any():
            places_N[is_so_N] = map_V[teacher_ids_N[is_so_N]]
    return places_N


def cut_to_context(reading: Reading, *, room: int) -> Reading:
    """The same without what lies beyond the first `room` teacher tokens; positions that need it are BEYOND_CONTEXT."""
    if len(reading.teacher_ids_M) <= room:
        return reading
    fits_N = reading.path_ends_N <= room
    status_T = reading.status_T.copy()
    status_T[reading.positions_N[~fits_N]] = PositionStatus.BEYOND_CONTEXT
    return Reading(
        teacher_ids_M=reading.teacher_ids_M[:room],
        wanted_M=reading.wanted_M[:room],
        status_T=status_T,
        rows_N=reading.rows_N[fits_N],
        path_ends_N=reading.path_ends_N[fits_N],
        sampled_ids_N=reading.sampled_ids_N[fits_N],
        conversions_N=reading.conversions_N[fits_N],
    )
