"""Ids that a student names for each position, where its ids correspond one to one with the teacher's. Pure numpy.

Nearly every candidate has one counterpart, whose logprob is its own. What is left are the *merged* tokens: the
teacher's end tokens, whose mass goes to one end token of the student, and what goes to a token that was paired by hand.
The engine is asked for all of them at every row, so that their sums are whole, however likely each of them is.
"""

# T = tokens of a response (the student's), M = those that the teacher has a counterpart for, N = positions scored,
# C = candidates per position, X = merged tokens of the teacher, E = entries of a row, V = teacher's vocabulary

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
from preceptor.wire import LogprobArray, PackedTokenArray, TokenArray, packed_token_dtype

from preceptor_server.alignment.reading import Reading
from preceptor_server.alignment.specials import AS_CONFIGURED
from preceptor_server.alignment.types import END, NO_PLACE, Alignment
from preceptor_server.types import ResponseToScore

_ROWS_AT_ONCE = 256
_Float = npt.NDArray[np.float64]


def slices_of_rows(num_rows: int) -> Iterator[slice]:
    """A few rows at a time: what is computed of all candidates at once is many times as large as their message."""
    for start in range(0, num_rows, _ROWS_AT_ONCE):
        yield slice(start, min(start + _ROWS_AT_ONCE, num_rows))


def merged_teacher_ids(alignment: Alignment, *, merges_end_tokens: bool) -> TokenArray:
    """The teacher tokens, [X], of which one student token may get several; none unless ids correspond one to one."""
    if not (merges_end_tokens and alignment.pairing.relation.is_one_to_one):
        return np.zeros(0, np.int64)
    configured = [pair.student_id for pair in alignment.paired if pair.reason == AS_CONFIGURED]
    return np.flatnonzero(np.isin(alignment.projection_V, [END, *configured]))


def are_among(merged_ids_X: TokenArray, ids_NJ: TokenArray) -> npt.NDArray[np.bool_]:
    """Which of the ids, which ascend, stand in each row of `ids_NJ`; [N, X]."""
    is_among_NX = np.zeros((len(ids_NJ), len(merged_ids_X)), np.bool_)
    places_NJ = np.minimum(np.searchsorted(merged_ids_X, ids_NJ), len(merged_ids_X) - 1)
    rows, columns = np.nonzero(merged_ids_X[places_NJ] == ids_NJ)
    is_among_NX[rows, places_NJ[rows, columns]] = True
    return is_among_NX


def teacher_candidates(
    response: ResponseToScore, reading: Reading, alignment: Alignment, *, merged_ids: TokenArray
) -> PackedTokenArray | None:
    """What to ask the engine for at each teacher token of a reading one to one: the counterparts of the response's
    candidates, then the merged tokens, [M, C + X], in the narrowest integers; None where that is nothing."""
    num_rows, asked_TC = len(reading.teacher_ids_M), response.candidate_ids_TC
    dtype = packed_token_dtype(len(alignment.projection_V))
    if asked_TC is None:
        return np.broadcast_to(merged_ids.astype(dtype), (num_rows, len(merged_ids))) if len(merged_ids) else None
    teacher_of_student_U = alignment.pairing.teacher_of_student_U
    read_M = np.flatnonzero(teacher_of_student_U[response.ids_T] != NO_PLACE)[:num_rows]
    # Any id will do where there is no counterpart: the answer is not used.
    counterpart_U = np.where(teacher_of_student_U == NO_PLACE, 0, teacher_of_student_U).astype(dtype)
    num_asked = asked_TC.shape[1]
    wanted_MC = np.empty((len(read_M), num_asked + len(merged_ids)), dtype)
    for rows in slices_of_rows(len(read_M)):
        wanted_MC[rows, :num_asked] = counterpart_U[asked_TC[read_M[rows]]]
    wanted_MC[:, num_asked:] = merged_ids
    return wanted_MC


def counterpart_logprobs(
    logprobs_NC: LogprobArray, candidate_ids_NC: PackedTokenArray, alignment: Alignment, *, merges_end_tokens: bool
) -> LogprobArray:
    """The counterparts' own logprobs; -inf where there is none, and where its mass goes to another token."""
    teacher_ids_NC = alignment.pairing.teacher_of_student_U[candidate_ids_NC]
    projection_V = alignment.projection_V if merges_end_tokens else alignment.pairing.projection_V
    is_own_NC = (teacher_ids_NC != NO_PLACE) & (projection_V[teacher_ids_NC] == candidate_ids_NC)
    return np.where(is_own_NC, logprobs_NC, np.float32(-np.inf))


def gathered_logprobs(
    logprobs_NC: LogprobArray, candidate_ids_NC: PackedTokenArray, *, places_NE: TokenArray, sums_NE: _Float
) -> LogprobArray:
    """`logprobs_NC`, with the row's sum for each candidate that is a place of its row.

    The places of a row ascend, and the first of equal ones has their sum.
    """
    if not places_NE.size:
        return logprobs_NC
    # One ascending sequence of all rows; places begin at END.
    width = int(max(places_NE.max(), candidate_ids_NC.max(initial=0))) + 1 - END
    first_N1 = (np.arange(len(places_NE)) * width - END)[:, None]
    keys = (first_N1 + places_NE).ravel()
    wanted_NC = first_N1 + candidate_ids_NC
    found_NC = np.minimum(np.searchsorted(keys, wanted_NC), len(keys) - 1)
    return np.where(keys[found_NC] == wanted_NC, sums_NE.ravel()[found_NC], logprobs_NC).astype(np.float32)
