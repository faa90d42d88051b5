"""Proves that an answer is about what was sent, and that its numbers are a distribution's. Pure numpy.

An answer that was torn, shifted by a row, or computed for other ids looks like a good one to a loss; here it is
refused. Knows nothing of protobuf or of gRPC.
"""

# P = prompt tokens, T = tokens of a response, M = the teacher's tokens for it, N = scored positions, K = support size,
# C = candidates per position

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from preceptor.wire import (
    LogprobArray,
    LogprobDtype,
    PositionStatus,
    SegmentationPolicy,
    TokenArray,
    digest_of_scored_ids,
)

from preceptor_client.errors import CorruptAnswerError
from preceptor_client.types import ResponseScores

MAX_LOGPROB = 1e-3
"""A logprob is at most 0; this much is forgiven to rounding."""
MASS_TOLERANCE = {LogprobDtype.F16: 1e-2, LogprobDtype.F32: 1e-3}
"""How far support + tail may be from 1. Half precision errs by 2^-11 of each logprob, so the sum errs by at most
2^-11 x entropy, 0.006 at the 12 nats of a uniform teacher."""
AGREEMENT_TOLERANCE = 1e-3
"""Two columns that hold the same logprob may differ by this much, in nats, before their own rounding."""
MASS_ROUNDING = 1e-3
"""A mean of masses may exceed its bound by this much."""
LEAST_UNMAPPED_LOGPROB = -100.0
"""Below it a mass may be missing from `unmapped_mass`, whose least value as a float32 is e^-103."""
_RELATIVE_ROUNDING = {LogprobDtype.F16: 2.0**-10, LogprobDtype.F32: 2.0**-22}
_LOWEST = {LogprobDtype.F16: float(np.finfo(np.float16).min), LogprobDtype.F32: float(np.finfo(np.float32).min)}


def verify_response(
    scores: ResponseScores,
    *,
    index: int,
    prompt_ids_P: TokenArray,
    response_ids_T: TokenArray,
    score_mask_T: npt.NDArray[np.bool_],
    logprob_dtype: LogprobDtype,
    segmentation: SegmentationPolicy,
    digest: bytes,
) -> None:
    """Raises CorruptAnswerError, naming the response and the column, unless all columns can be trusted."""
    verify_digest(digest, index=index, prompt_ids_P=prompt_ids_P, response_ids_T=response_ids_T)
    verify_mask(scores, index=index, score_mask_T=score_mask_T)
    verify_support_ids(scores, index=index)
    verify_support_logprobs(scores, index=index)
    verify_mass(scores, index=index, logprob_dtype=logprob_dtype)
    verify_entropies(scores, index=index)
    verify_sampled(scores, index=index, response_ids_T=response_ids_T, logprob_dtype=logprob_dtype)
    verify_candidates(scores, index=index, response_ids_T=response_ids_T, logprob_dtype=logprob_dtype)
    verify_teacher_rows(scores, index=index, segmentation=segmentation)
    verify_unmapped_mass(scores, index=index)


def verify_echo(field: str, *, sent: object, answered: object) -> None:
    """The answer repeats what the request said."""
    if sent != answered:
        raise CorruptAnswerError(f"{field}: the request said {sent!r}, the answer says {answered!r}")


def verify_policy(applied: int, *, asked: SegmentationPolicy | None) -> None:
    """The server says which policy it applied, and it is the one that was asked for, if one was."""
    if applied not in SegmentationPolicy.__members__.values():
        raise CorruptAnswerError(f"segmentation is {applied}: the answer does not say which policy was applied")
    if asked is not None:
        verify_echo("segmentation", sent=asked.name, answered=SegmentationPolicy(applied).name)


def verify_digest(digest: bytes, *, index: int, prompt_ids_P: TokenArray, response_ids_T: TokenArray) -> None:
    """The server fed to its model the ids that were sent."""
    if digest != digest_of_scored_ids(prompt_ids_P, response_ids_T):
        raise corrupt(index, "digest", f"is {digest.hex()[:16]}..., so other ids were scored than the ones sent")


def verify_mask(scores: ResponseScores, *, index: int, score_mask_T: npt.NDArray[np.bool_]) -> None:
    """Exactly the positions that the caller excluded are EXCLUDED."""
    is_excluded_T = scores.status_T == PositionStatus.EXCLUDED
    wrong_T = is_excluded_T == score_mask_T
    if wrong_T.any():
        position = int(np.argmax(wrong_T))
        said = "excluded, though it was to be scored" if is_excluded_T[position] else "not excluded, as it was asked"
        raise corrupt(index, "status", f"says that position {position} is {said}")


def verify_support_ids(scores: ResponseScores, *, index: int) -> None:
    """No id stands twice in the support of a row; what is -inf is outside, and may repeat an id."""
    is_outside_NK = np.isneginf(scores.support_logprobs_NK)
    # Numbers of their own, below every id, for what is outside.
    ids_NK = np.where(is_outside_NK, -1 - np.arange(is_outside_NK.shape[1]), scores.support_ids_NK)
    sorted_NK = np.sort(ids_NK, axis=1)
    _refuse_rows(np.diff(sorted_NK, axis=1) == 0, index=index, column="support_ids", says="repeats an id")


def verify_support_logprobs(scores: ResponseScores, *, index: int) -> None:
    """Logprobs, sorted descending, at least one of them finite."""
    logprobs_NK = scores.support_logprobs_NK
    _refuse_no_logprob(logprobs_NK, index=index, column="support_logprobs")
    # Compared, not subtracted: -inf may follow -inf.
    is_rising_NK = logprobs_NK[:, 1:] > logprobs_NK[:, :-1]
    _refuse_rows(is_rising_NK, index=index, column="support_logprobs", says="is not sorted by descending logprob")
    _refuse_rows(np.isneginf(logprobs_NK[:, 0]), index=index, column="support_logprobs", says="is empty: all -inf")


def verify_mass(scores: ResponseScores, *, index: int, logprob_dtype: LogprobDtype) -> None:
    """Support and tail together hold all of the teacher's mass."""
    _refuse_no_logprob(scores.log_tail_mass_N, index=index, column="log_tail_mass")
    support_N = np.exp(scores.support_logprobs_NK.astype(np.float64)).sum(axis=1)
    mass_N = support_N + np.exp(scores.log_tail_mass_N.astype(np.float64))
    is_off_N = np.abs(mass_N - 1.0) > MASS_TOLERANCE[logprob_dtype]
    if is_off_N.any():
        row = int(np.argmax(is_off_N))
        raise corrupt(
            index, "log_tail_mass", f"and support_logprobs of row {row} sum to {mass_N[row]:.4f} instead of 1"
        )


def verify_entropies(scores: ResponseScores, *, index: int) -> None:
    """Entropies are finite and not negative, where the teacher computes them."""
    entropies_N = scores.entropies_N
    if entropies_N is None:
        return
    is_wrong_N = ~np.isfinite(entropies_N) | (entropies_N < -MAX_LOGPROB)
    _refuse_rows(is_wrong_N, index=index, column="entropies", says="is negative, NaN or infinite")


def verify_alike(responses: Sequence[ResponseScores]) -> None:
    """One teacher answered all responses: either each that has rows has entropies, or none has."""
    scored = [(index, scores) for index, scores in enumerate(responses) if len(scores.positions_N)]
    missing = [index for index, scores in scored if scores.entropies_N is None]
    if missing and len(missing) < len(scored):
        raise corrupt(missing[0], "entropies", "is empty, while other responses of the answer have entropies")


def verify_sampled(
    scores: ResponseScores, *, index: int, response_ids_T: TokenArray, logprob_dtype: LogprobDtype
) -> None:
    """The sampled token's logprob is the support's, where the support holds it, and else not above the support; where
    the support had room left, there is none."""
    sampled_N, support_NK = scores.sampled_logprobs_N, scores.support_logprobs_NK
    _refuse_no_logprob(sampled_N, index=index, column="sampled_logprobs")
    is_sampled_NK = scores.support_ids_NK == response_ids_T[scores.positions_N][:, None]
    is_inside_N = is_sampled_NK.any(axis=1)
    # Outside, the last entry is the bound; it is -inf where the support had room for the sampled token, as it is for
    # a token among what fills the row up.
    rank_N = np.where(is_inside_N, is_sampled_NK.argmax(axis=1), support_NK.shape[1] - 1)
    expected_N = np.take_along_axis(support_NK, rank_N[:, None], axis=1)[:, 0]
    is_off_N = _disagrees(sampled_N, expected_N, is_bound=~is_inside_N, logprob_dtype=logprob_dtype)
    if is_off_N.any():
        row = int(np.argmax(is_off_N))
        says = "gives it" if is_inside_N[row] else "lacks it and ends at"
        raise corrupt(
            index,
            "sampled_logprobs",
            f"of row {row} is {sampled_N[row]:.4f}, while the row's support {says} {expected_N[row]:.4f}: "
            "rows are shifted, or columns belong to other tokens",
        )


def verify_candidates(
    scores: ResponseScores, *, index: int, response_ids_T: TokenArray, logprob_dtype: LogprobDtype
) -> None:
    """A candidate's logprob is the support's, where the support holds it, and else not above the support; where it is
    the sampled token, it is that token's. Ids correspond one to one, or none would have been answered."""
    ids_NC, logprobs_NC = scores.candidate_ids_NC, scores.candidate_logprobs_NC
    if ids_NC is None or logprobs_NC is None or not ids_NC.size:
        return
    _refuse_no_logprob(logprobs_NC, index=index, column="candidate_logprobs")
    is_inside_NC, supported_NC = _find_in_support(scores, ids_NC)
    # Where a likely token has no place in the student's vocabulary, a less likely one took its place in the support.
    is_exact = scores.unmapped_mass == 0
    bound_N1 = np.maximum(scores.support_logprobs_NK[:, -1:], LEAST_UNMAPPED_LOGPROB) if is_exact else np.float32(0.0)
    sampled_N1 = response_ids_T[scores.positions_N][:, None]
    for is_so_NC, expected_NC, is_bound, says in (
        (is_inside_NC, supported_NC, False, "the row's support gives it"),
        (~is_inside_NC, bound_N1, True, "the row's support lacks it and ends at"),
        (ids_NC == sampled_N1, scores.sampled_logprobs_N[:, None], False, "it is the sampled token, which has"),
    ):
        is_off_NC = is_so_NC & _disagrees(logprobs_NC, expected_NC, is_bound=is_bound, logprob_dtype=logprob_dtype)
        if is_off_NC.any():
            row, place = (int(i[0]) for i in np.nonzero(is_off_NC))
            expected = np.broadcast_to(expected_NC, ids_NC.shape)[row, place]
            raise corrupt(
                index,
                "candidate_logprobs",
                f"of row {row} gives id {ids_NC[row, place]} {logprobs_NC[row, place]:.4f}, while {says} "
                f"{expected:.4f}: rows are shifted, or columns belong to other tokens",
            )


def verify_teacher_rows(scores: ResponseScores, *, index: int, segmentation: SegmentationPolicy) -> None:
    """Each row has a place among the teacher's ids, in their order (two may share one, where a space that the student
    wrote by itself begins the teacher's token); with policies that score the student's ids one for one, the
    position's own, unless some had no counterpart and were left out."""
    ids_M, rows_N = scores.teacher_ids_M, scores.teacher_rows_N
    if ids_M is None or rows_N is None:
        if rows_N is not None:
            raise corrupt(index, "teacher_rows", "point into teacher_ids, which are absent")
        return
    N, M = len(scores.positions_N), len(ids_M)
    if len(rows_N) != N:
        raise corrupt(index, "teacher_rows", f"holds {len(rows_N)} entries instead of {N}")
    _refuse_rows(rows_N >= M, index=index, column="teacher_rows", says=f"is outside the {M} teacher_ids")
    is_late_N = np.diff(rows_N, prepend=0) < 0
    _refuse_rows(is_late_N, index=index, column="teacher_rows", says="is below the row before")
    is_third_N = np.concatenate([[False] * 2, rows_N[2:] == rows_N[:-2]])[:N]
    _refuse_rows(is_third_N, index=index, column="teacher_rows", says="is a third one at the same token")
    if segmentation is not SegmentationPolicy.CANONICAL:
        P_N, has_left_out = scores.positions_N, len(scores.status_T) > M
        is_shifted_N = rows_N > P_N if has_left_out else rows_N != P_N
        says = f"is not its position, though {segmentation.name} scores the ids one for one"
        _refuse_rows(is_shifted_N, index=index, column="teacher_rows", says=says)


def verify_unmapped_mass(scores: ResponseScores, *, index: int) -> None:
    """A mass, and no more than what the tails hold: it is part of them."""
    mass = scores.unmapped_mass
    if not 0.0 <= mass <= 1.0 + MASS_ROUNDING:
        raise corrupt(index, "unmapped_mass", f"is {mass}, a mass is in [0, 1]")
    tail = float(np.exp(scores.log_tail_mass_N.astype(np.float64)).mean()) if len(scores.log_tail_mass_N) else 0.0
    if mass > tail + MASS_ROUNDING:
        raise corrupt(index, "unmapped_mass", f"is {mass:.4f}, more than the {tail:.4f} of the tail that it is part of")


def corrupt(index: int, column: str, message: str) -> CorruptAnswerError:
    """The error for one column of one response."""
    return CorruptAnswerError(f"responses[{index}].{column} {message}")


def _find_in_support(scores: ResponseScores, ids_NC: TokenArray) -> tuple[npt.NDArray[np.bool_], LogprobArray]:
    """Which ids stand in their row's support, and the logprobs there; of an id that stands there twice, the first."""
    order_NK = np.argsort(scores.support_ids_NK, axis=1, kind="stable")
    # One ascending sequence of all rows.
    width = int(max(scores.support_ids_NK.max(), ids_NC.max())) + 1
    first_N1 = (np.arange(len(ids_NC)) * width)[:, None]
    keys = (first_N1 + np.take_along_axis(scores.support_ids_NK, order_NK, axis=1)).ravel()
    found_NC = np.minimum(np.searchsorted(keys, first_N1 + ids_NC), len(keys) - 1)
    is_inside_NC: npt.NDArray[np.bool_] = keys[found_NC] == first_N1 + ids_NC
    return is_inside_NC, np.take_along_axis(scores.support_logprobs_NK, order_NK, axis=1).ravel()[found_NC]


def _disagrees(
    logprobs: LogprobArray,
    expected: LogprobArray | np.float32,
    *,
    is_bound: npt.NDArray[np.bool_] | bool,
    logprob_dtype: LogprobDtype,
) -> npt.NDArray[np.bool_]:
    """Whether logprobs differ from what is expected by more than rounding; where that is a bound, lie above it."""
    # A logprob of -inf agrees with -inf, and with whatever the dtype cannot hold.
    lowest = _LOWEST[logprob_dtype]
    logprobs, expected = np.maximum(logprobs, lowest), np.maximum(expected, lowest)
    tolerance = AGREEMENT_TOLERANCE + _RELATIVE_ROUNDING[logprob_dtype] * np.abs(expected)
    excess = logprobs - expected
    is_off: npt.NDArray[np.bool_] = np.where(is_bound, excess, np.abs(excess)) > tolerance
    return is_off


def _refuse_no_logprob(values: LogprobArray, *, index: int, column: str) -> None:
    _refuse_rows(np.isnan(values), index=index, column=column, says="holds a NaN")
    _refuse_rows(values > MAX_LOGPROB, index=index, column=column, says="holds a logprob above 0")


def _refuse_rows(is_wrong: npt.NDArray[np.bool_], *, index: int, column: str, says: str) -> None:
    rows = np.nonzero(is_wrong)[0]
    if rows.size:
        raise corrupt(index, column, f"of row {rows[0]} {says}")
