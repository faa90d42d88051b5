"""Proves that an answer is about what was sent, and that its numbers are a distribution's. Pure numpy.

An answer that was torn, shifted by a row, or computed for other ids looks like a good one to a loss; here it is
refused. Knows nothing of protobuf or of gRPC.
"""

# P = prompt tokens, T = tokens of a response, N = scored positions, K = support size

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from preceptor.wire import LogprobArray, LogprobDtype, PositionStatus, TokenArray, digest_of_scored_ids

from preceptor_client.errors import CorruptAnswerError
from preceptor_client.types import ResponseScores

MAX_LOGPROB = 1e-3
"""A logprob is at most 0; this much is forgiven to rounding."""
MASS_TOLERANCE = {LogprobDtype.F16: 1e-2, LogprobDtype.F32: 1e-3}
"""How far support + tail may be from 1. Half precision errs by 2^-11 of each logprob, so the sum errs by at most
2^-11 x entropy, 0.006 at the 12 nats of a uniform teacher."""
AGREEMENT_TOLERANCE = 1e-3
"""Two columns that hold the same logprob may differ by this much, in nats, before their own rounding."""
_RELATIVE_ROUNDING = {LogprobDtype.F16: 2.0**-10, LogprobDtype.F32: 2.0**-22}


def verify_response(
    scores: ResponseScores,
    *,
    index: int,
    prompt_ids_P: TokenArray,
    response_ids_T: TokenArray,
    score_mask_T: npt.NDArray[np.bool_],
    logprob_dtype: LogprobDtype,
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


def verify_echo(field: str, *, sent: object, answered: object) -> None:
    """The answer repeats what the request said."""
    if sent != answered:
        raise CorruptAnswerError(f"{field}: the request said {sent!r}, the answer says {answered!r}")


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
    """No id stands twice in a row."""
    sorted_NK = np.sort(scores.support_ids_NK, axis=1)
    _refuse_rows(np.diff(sorted_NK, axis=1) == 0, index=index, column="support_ids", says="repeats an id")


def verify_support_logprobs(scores: ResponseScores, *, index: int) -> None:
    """Logprobs, sorted descending."""
    logprobs_NK = scores.support_logprobs_NK
    _refuse_no_logprob(logprobs_NK, index=index, column="support_logprobs")
    # Compared, not subtracted: -inf may follow -inf.
    is_rising_NK = logprobs_NK[:, 1:] > logprobs_NK[:, :-1]
    _refuse_rows(is_rising_NK, index=index, column="support_logprobs", says="is not sorted by descending logprob")


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
    """Entropies are finite and not negative."""
    entropies_N = scores.entropies_N
    is_wrong_N = ~np.isfinite(entropies_N) | (entropies_N < -MAX_LOGPROB)
    _refuse_rows(is_wrong_N, index=index, column="entropies", says="is negative, NaN or infinite")


def verify_sampled(
    scores: ResponseScores, *, index: int, response_ids_T: TokenArray, logprob_dtype: LogprobDtype
) -> None:
    """The sampled token's logprob is the support's, where the support holds it, and else not above the support."""
    sampled_N = scores.sampled_logprobs_N
    _refuse_no_logprob(sampled_N, index=index, column="sampled_logprobs")
    is_sampled_NK = scores.support_ids_NK == response_ids_T[scores.positions_N][:, None]
    is_inside_N = is_sampled_NK.any(axis=1)
    rank_N = np.where(is_inside_N, is_sampled_NK.argmax(axis=1), scores.support_ids_NK.shape[1] - 1)
    expected_N = np.take_along_axis(scores.support_logprobs_NK, rank_N[:, None], axis=1)[:, 0]
    # A logprob of -inf agrees with -inf, and with whatever half precision cannot hold.
    lowest_f16 = float(np.finfo(np.float16).min)
    sampled_N, expected_N = np.maximum(sampled_N, lowest_f16), np.maximum(expected_N, lowest_f16)
    tolerance_N = AGREEMENT_TOLERANCE + _RELATIVE_ROUNDING[logprob_dtype] * np.abs(expected_N)
    excess_N = sampled_N - expected_N
    is_off_N = np.where(is_inside_N, np.abs(excess_N), excess_N) > tolerance_N
    if is_off_N.any():
        row = int(np.argmax(is_off_N))
        says = "gives it" if is_inside_N[row] else "ends at"
        raise corrupt(
            index,
            "sampled_logprobs",
            f"of row {row} is {sampled_N[row]:.4f}, while the row's support {says} {expected_N[row]:.4f}: "
            "rows are shifted, or columns belong to other tokens",
        )


def corrupt(index: int, column: str, message: str) -> CorruptAnswerError:
    """The error for one column of one response."""
    return CorruptAnswerError(f"responses[{index}].{column} {message}")


def _refuse_no_logprob(values: LogprobArray, *, index: int, column: str) -> None:
    _refuse_rows(np.isnan(values), index=index, column=column, says="holds a NaN")
    _refuse_rows(values > MAX_LOGPROB, index=index, column=column, says="holds a logprob above 0")


def _refuse_rows(is_wrong: npt.NDArray[np.bool_], *, index: int, column: str, says: str) -> None:
    rows = np.nonzero(is_wrong)[0]
    if rows.size:
        raise corrupt(index, column, f"of row {rows[0]} {says}")
