"""Which tokens a loss compares at each position, and what the teacher gives them. Pure numpy; imports no torch.

An entry of -inf is outside the support: so every row has the same width, whatever it holds.
"""

# N = positions, T = tokens of the teacher's answer, C = candidates (the student's likeliest tokens), K = width

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from preceptor.wire import TokenArray

from preceptor_client.errors import CorruptAnswerError
from preceptor_client.train.objective.config import ObjectiveConfig
from preceptor_client.types import ResponseScores

_Float = npt.NDArray[np.float64]
_Bool = npt.NDArray[np.bool_]
MIN_TOP_P_TOKENS = 2
"""A support of one token, renormalised, has nothing to say: teacher_top_p keeps the second too."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Support:
    """One response's supports. No id stands in a row twice but as a filler with -inf."""

    ids_NK: TokenArray
    teacher_logprobs_NK: _Float
    teacher_log_tail_N: _Float
    """Log of the teacher's mass outside; -inf where there is none."""
    is_sampled_inside_N: _Bool

    @property
    def sizes_N(self) -> npt.NDArray[np.int64]:
        sizes_N: npt.NDArray[np.int64] = (~np.isneginf(self.teacher_logprobs_NK)).sum(axis=1)
        return sizes_N


def support_of(scores: ResponseScores, *, sampled_ids_N: TokenArray, config: ObjectiveConfig) -> Support:
    """The supports that the settings ask for. `sampled_ids_N` are the tokens that the student wrote."""
    rows = _Rows(
        ids_NK=scores.support_ids_NK,
        logprobs_NK=scores.support_logprobs_NK.astype(np.float64),
        tail_N=np.exp(scores.log_tail_mass_N.astype(np.float64)),
    )
    if config.support == "teacher_top_p":
        rows = _cut_to_mass(rows, mass=config.support_top_p)
    elif config.needs_student_tokens:
        ids_NC, logprobs_NC = _candidates(scores)
        rows = _joined(rows, ids_NC, logprobs_NC)
        if config.support == "student":
            rows = _only(rows, wanted_NC=ids_NC)
    if config.include_sampled:
        rows = _joined(rows, sampled_ids_N[:, None], scores.sampled_logprobs_N.astype(np.float64)[:, None])
    is_sampled_NK = (rows.ids_NK == sampled_ids_N[:, None]) & ~np.isneginf(rows.logprobs_NK)
    with np.errstate(divide="ignore"):
        log_tail_N = np.log(rows.tail_N)
    return Support(
        ids_NK=rows.ids_NK,
        teacher_logprobs_NK=rows.logprobs_NK,
        teacher_log_tail_N=log_tail_N,
        is_sampled_inside_N=is_sampled_NK.any(axis=1),
    )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Rows:
    """A support in the making, with masses where logs would lose the small differences."""

    ids_NK: TokenArray
    logprobs_NK: _Float
    tail_N: _Float


def _candidates(scores: ResponseScores) -> tuple[TokenArray, _Float]:
    if scores.candidate_ids_NC is None or scores.candidate_logprobs_NC is None:
        raise CorruptAnswerError("the answer has no logprobs of the student's likeliest tokens, which were asked for")
    return scores.candidate_ids_NC, scores.candidate_logprobs_NC.astype(np.float64)


def _cut_to_mass(rows: _Rows, *, mass: float) -> _Rows:
    """The fewest likeliest tokens that hold `mass`; what is cut joins the tail. Rows are sorted."""
    probabilities_NK = np.exp(rows.logprobs_NK)
    is_kept_NK = np.cumsum(probabilities_NK, axis=1) - probabilities_NK < mass
    is_kept_NK[:, :MIN_TOP_P_TOKENS] = True
    width = max(MIN_TOP_P_TOKENS, int(is_kept_NK.sum(axis=1).max(initial=0)))
    return _Rows(
        ids_NK=rows.ids_NK[:, :width],
        logprobs_NK=np.where(is_kept_NK, rows.logprobs_NK, -np.inf)[:, :width],
        tail_N=rows.tail_N + np.where(is_kept_NK, 0.0, probabilities_NK).sum(axis=1),
    )


def _joined(rows: _Rows, new_ids_NC: TokenArray, new_logprobs_NC: _Float) -> _Rows:
    """The support and the new tokens that it lacks, whose mass leaves the tail. The new ones are unlike each other."""
    is_known_NC = _are_equal(new_ids_NC, rows).any(axis=2)
    added_NC = np.where(is_known_NC, -np.inf, new_logprobs_NC)
    return _Rows(
        ids_NK=np.concatenate([rows.ids_NK, new_ids_NC], axis=1, dtype=np.int64),
        logprobs_NK=np.concatenate([rows.logprobs_NK, added_NC], axis=1),
        tail_N=np.maximum(rows.tail_N - np.exp(added_NC).sum(axis=1), 0.0),
    )


def _only(rows: _Rows, *, wanted_NC: TokenArray) -> _Rows:
    """Of a support that holds the wanted tokens, these alone, in their order; the others' mass joins the tail."""
    are_equal_NCK = _are_equal(wanted_NC, rows)
    place_NC = are_equal_NCK.argmax(axis=2)
    found_NC = np.take_along_axis(rows.logprobs_NK, place_NC, axis=1)
    dropped_NK = np.where(are_equal_NCK.any(axis=1), -np.inf, rows.logprobs_NK)
    return _Rows(
        ids_NK=wanted_NC,
        logprobs_NK=np.where(are_equal_NCK.any(axis=2), found_NC, -np.inf),
        tail_N=rows.tail_N + np.exp(dropped_NK).sum(axis=1),
    )


def _are_equal(ids_NC: TokenArray, rows: _Rows) -> _Bool:
    """Which of the given ids is which entry of the support, [N, C, K]; fillers are none."""
    inside_NK = np.where(np.isneginf(rows.logprobs_NK), -1, rows.ids_NK)
    are_equal_NCK: _Bool = ids_NC[:, :, None] == inside_NK[:, None, :]
    return are_equal_NCK
