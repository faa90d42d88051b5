"""The student's own segmentation as the teacher reads it, where ids correspond one to one. Pure numpy."""

# T = tokens of a response, M = those of them that the teacher has a counterpart for, N = positions to be scored

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from preceptor.wire import PositionStatus, TokenArray

from preceptor_server.alignment.reading import Conversion, Reading
from preceptor_server.alignment.types import NO_PLACE, Alignment
from preceptor_server.types import ResponseToScore


def read_one_to_one(
    response: ResponseToScore,
    alignment: Alignment,
    *,
    masked_T: npt.NDArray[np.bool_] | None = None,
    status: PositionStatus = PositionStatus.SPECIAL,
) -> Reading:
    """Every id in its counterpart. Positions in `masked_T` get `status` in place of a score.

    The engine is asked at masked positions too: so what it computes, and with it the last bit of what it answers, does
    not depend on the policy.
    """
    mapped_T = alignment.pairing.teacher_of_student_U[response.ids_T].astype(np.int64)
    has_place_T = mapped_T != NO_PLACE
    status_T = np.full(len(mapped_T), PositionStatus.OK, np.uint8)
    if masked_T is not None:
        status_T[masked_T] = status
    status_T[~has_place_T] = PositionStatus.UNMAPPED
    status_T[~response.score_mask_T] = PositionStatus.EXCLUDED
    is_ok_T = status_T == PositionStatus.OK
    rows_N = (np.cumsum(has_place_T) - 1)[is_ok_T]
    return Reading(
        teacher_ids_M=mapped_T[has_place_T],
        wanted_M=response.score_mask_T[has_place_T],
        status_T=status_T,
        rows_N=rows_N,
        path_ends_N=rows_N + 1,
        sampled_ids_N=response.ids_T[is_ok_T],
        conversions_N=np.full(len(rows_N), Conversion.PLAIN, np.uint8),
    )


def first_occurrences(ids_T: TokenArray, listed: Sequence[int]) -> npt.NDArray[np.bool_]:
    """The first position of each listed id, [T]: the rule of arXiv 2603.25562's code for special tokens."""
    is_first_T = np.zeros(len(ids_T), np.bool_)
    for token_id in listed:
        places = np.flatnonzero(ids_T == token_id)
        is_first_T[places[:1]] = True
    return is_first_T
