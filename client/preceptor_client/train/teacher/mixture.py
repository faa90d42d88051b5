"""Mixes several teachers' distributions over one response into one. Numpy only; asks nobody."""

# T = tokens of the response, N = scored positions, K = support size, C = candidates per position, M = teachers

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from preceptor_client.errors import CorruptAnswerError
from preceptor_client.types import ResponseScores

_Float = npt.NDArray[np.float64]
_PER_TOKEN = ("status_T", "teacher_ids_M", "unmapped_mass")
"""What belongs to the response and not to its scored positions."""


def rows_of(scores: ResponseScores, rows: npt.NDArray[np.int64] | npt.NDArray[np.bool_]) -> ResponseScores:
    """The same at some of the scored positions."""
    changes: dict[str, Any] = {}  # Any: columns of several dtypes
    for field in fields(scores):
        column = getattr(scores, field.name)
        if field.name not in _PER_TOKEN and column is not None:
            changes[field.name] = column[rows]
    return replace(scores, **changes)


def at_common_positions(answers: Sequence[ResponseScores]) -> list[ResponseScores]:
    """Each answer at the positions that all of them scored."""
    common = answers[0].positions_N
    for scores in answers[1:]:
        common = np.intersect1d(common, scores.positions_N, assume_unique=True)
    return [rows_of(scores, np.searchsorted(scores.positions_N, common)) for scores in answers]


def ids_to_ask_about(
    scores: ResponseScores, *, student_ids_TC: npt.NDArray[np.integer] | None
) -> npt.NDArray[np.int64]:
    """What the other teachers are asked about, [T, C]: the first teacher's support, and the student's tokens where it
    was asked about those. At tokens without a score the ids mean nothing."""
    num_tokens, top_k = len(scores.status_T), scores.support_ids_NK.shape[1]
    ids_TK = np.zeros((num_tokens, top_k), np.int64)
    ids_TK[scores.positions_N] = scores.support_ids_NK
    return ids_TK if student_ids_TC is None else np.concatenate([ids_TK, student_ids_TC], axis=1, dtype=np.int64)


def mixed(first: ResponseScores, others: Sequence[ResponseScores], *, shares_MN: _Float) -> ResponseScores:
    """The mixture, sum over teachers of share * probability, over the first teacher's support.

    All answers are at the same positions, and those of `others` hold the ids of `ids_to_ask_about` as candidates.
    `shares_MN` add up to 1 at each position. Rows are sorted by the mixture. The tail is what the mixture leaves
    outside the support. The entropy of a mixture is not known from these columns: there is none.
    """
    if not len(first.positions_N):
        # Nothing was asked about an episode without a token to score.
        return replace(first, entropies_N=None)
    top_k = first.support_ids_NK.shape[1]
    theirs = [_candidates(scores, num_ids=_num_asked(first)) for scores in others]
    support_NK = _mixed_logprobs([first.support_logprobs_NK, *(logprobs[:, :top_k] for logprobs in theirs)], shares_MN)
    # What fills up the first teacher's row is no token of the support, whatever others give to its id.
    support_NK = np.where(np.isneginf(first.support_logprobs_NK), -np.inf, support_NK)
    order_NK = np.lexsort((first.support_ids_NK, -support_NK), axis=1)
    sampled = [first.sampled_logprobs_N, *(scores.sampled_logprobs_N for scores in others)]
    with np.errstate(divide="ignore"):
        tail_N = np.log(np.clip(1 - np.exp(support_NK).sum(axis=1), 0.0, 1.0))
    candidates_NC = None
    if first.candidate_logprobs_NC is not None:
        candidates_NC = _mixed_logprobs(
            [first.candidate_logprobs_NC, *(logprobs[:, top_k:] for logprobs in theirs)], shares_MN
        )
    return replace(
        first,
        support_ids_NK=np.take_along_axis(first.support_ids_NK, order_NK, axis=1),
        support_logprobs_NK=_as_float32(np.take_along_axis(support_NK, order_NK, axis=1)),
        sampled_logprobs_N=_as_float32(_mixed_logprobs([column[:, None] for column in sampled], shares_MN)[:, 0]),
        log_tail_mass_N=_as_float32(tail_N),
        entropies_N=None,
        candidate_logprobs_NC=None if candidates_NC is None else _as_float32(candidates_NC),
    )


def _num_asked(first: ResponseScores) -> int:
    num_candidates = 0 if first.candidate_ids_NC is None else first.candidate_ids_NC.shape[1]
    return int(first.support_ids_NK.shape[1] + num_candidates)


def _candidates(scores: ResponseScores, *, num_ids: int) -> npt.NDArray[np.floating]:
    logprobs_NC = scores.candidate_logprobs_NC
    if logprobs_NC is None or logprobs_NC.shape[1] != num_ids:
        raise CorruptAnswerError(f"an answer lacks the logprobs of the {num_ids} ids per position that were asked for")
    return logprobs_NC


def _mixed_logprobs(columns: Sequence[npt.NDArray[np.floating]], shares_MN: _Float) -> _Float:
    """log of the sum of shares times probabilities, [N, C], in float64."""
    with np.errstate(divide="ignore"):
        log_shares_MN = np.log(shares_MN)
    terms_MNC = np.stack([column.astype(np.float64) for column in columns]) + log_shares_MN[:, :, None]
    largest_NC = terms_MNC.max(axis=0)
    finite_NC = np.where(np.isneginf(largest_NC), 0.0, largest_NC)
    with np.errstate(divide="ignore"):
        mixed_NC: _Float = np.log(np.exp(terms_MNC - finite_NC).sum(axis=0)) + finite_NC
    return mixed_NC


def _as_float32(values: _Float) -> npt.NDArray[np.float32]:
    return values.astype(np.float32)
