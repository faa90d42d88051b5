"""Selects the support of each position, and the teacher's logprobs of it. Pure numpy; imports no torch.

An entry of -inf is outside the support: so every row has the same width, whatever it holds. Knows no loss.
"""

# N = positions, T = tokens of the teacher's answer, C = candidates (the student's likeliest tokens), K = width

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
from preceptor.wire import TokenArray

from preceptor_client.errors import CorruptAnswerError
from preceptor_client.train.parts import Seam
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
    teacher_tail_N: _Float
    """The teacher's mass outside. A mass and not its log, which would lose the small differences."""
    is_sampled_inside_N: _Bool
    """Whether the token that the student wrote is in the support."""

    @property
    def sizes_N(self) -> npt.NDArray[np.int64]:
        """How many tokens each row holds."""
        sizes_N: npt.NDArray[np.int64] = (~np.isneginf(self.teacher_logprobs_NK)).sum(axis=1)
        return sizes_N

    @property
    def teacher_log_tail_N(self) -> _Float:
        """Log of the teacher's mass outside; -inf where there is none."""
        with np.errstate(divide="ignore"):
            log_tail_N: _Float = np.log(self.teacher_tail_N)
        return log_tail_N

    def rows(self, is_kept_N: _Bool | npt.NDArray[np.int64]) -> Support:
        """Those of some positions."""
        return Support(
            ids_NK=self.ids_NK[is_kept_N],
            teacher_logprobs_NK=self.teacher_logprobs_NK[is_kept_N],
            teacher_tail_N=self.teacher_tail_N[is_kept_N],
            is_sampled_inside_N=self.is_sampled_inside_N[is_kept_N],
        )


class SupportRule(Protocol):
    """Chooses supports. One class, named in TOML: objective.support = "package.module:Name"; the keyword arguments of
    its constructor are objective.support_options."""

    @property
    def needs_student_tokens(self) -> bool:
        """Whether the teacher is asked about the student's likeliest tokens, `scores.candidate_ids_NC`."""
        ...

    def select(self, scores: ResponseScores, *, sampled_ids_N: TokenArray) -> Support:
        """The supports of one response, a row for each scored position. `sampled_ids_N` are the tokens that the student
        wrote there."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SupportRows:
    """A support in the making: what a rule adds to and takes from. Masses where logs would lose the small
    differences."""

    ids_NK: TokenArray
    logprobs_NK: _Float
    tail_N: _Float

    def cut_to_mass(self, mass: float) -> SupportRows:
        """The fewest likeliest tokens that hold `mass`; what is cut joins the tail. Rows are sorted."""
        probabilities_NK = np.exp(self.logprobs_NK)
        is_kept_NK = np.cumsum(probabilities_NK, axis=1) - probabilities_NK < mass
        is_kept_NK[:, :MIN_TOP_P_TOKENS] = True
        width = max(MIN_TOP_P_TOKENS, int(is_kept_NK.sum(axis=1).max(initial=0)))
        return SupportRows(
            ids_NK=self.ids_NK[:, :width],
            logprobs_NK=np.where(is_kept_NK, self.logprobs_NK, -np.inf)[:, :width],
            tail_N=self.tail_N + np.where(is_kept_NK, 0.0, probabilities_NK).sum(axis=1),
        )

    def joined(self, new_ids_NC: TokenArray, new_logprobs_NC: _Float) -> SupportRows:
        """With the new tokens that it lacks, whose mass leaves the tail. The new ones are unlike each other."""
        is_known_NC = self._are_equal(new_ids_NC).any(axis=2)
        added_NC = np.where(is_known_NC, -np.inf, new_logprobs_NC)
        return SupportRows(
            ids_NK=np.concatenate([self.ids_NK, new_ids_NC], axis=1, dtype=np.int64),
            logprobs_NK=np.concatenate([self.logprobs_NK, added_NC], axis=1),
            tail_N=np.maximum(self.tail_N - np.exp(added_NC).sum(axis=1), 0.0),
        )

    def only(self, wanted_NC: TokenArray) -> SupportRows:
        """Of a support that holds the wanted tokens, these alone, in their order; the others' mass joins the tail. A
        wanted token that it does not hold becomes a filler."""
        are_equal_NCK = self._are_equal(wanted_NC)
        place_NC = are_equal_NCK.argmax(axis=2)
        found_NC = np.take_along_axis(self.logprobs_NK, place_NC, axis=1)
        dropped_NK = np.where(are_equal_NCK.any(axis=1), -np.inf, self.logprobs_NK)
        return SupportRows(
            ids_NK=wanted_NC,
            logprobs_NK=np.where(are_equal_NCK.any(axis=2), found_NC, -np.inf),
            tail_N=self.tail_N + np.exp(dropped_NK).sum(axis=1),
        )

    def finish(self, sampled_ids_N: TokenArray) -> Support:
        """As the loss takes it. `sampled_ids_N` are the tokens that the student wrote."""
        is_sampled_NK = (self.ids_NK == sampled_ids_N[:, None]) & ~np.isneginf(self.logprobs_NK)
        return Support(
            ids_NK=self.ids_NK,
            teacher_logprobs_NK=self.logprobs_NK,
            teacher_tail_N=self.tail_N,
            is_sampled_inside_N=is_sampled_NK.any(axis=1),
        )

    def _are_equal(self, ids_NC: TokenArray) -> _Bool:
        """Which of the given ids is which entry of the support, [N, C, K]; fillers are none."""
        inside_NK = np.where(np.isneginf(self.logprobs_NK), -1, self.ids_NK)
        are_equal_NCK: _Bool = ids_NC[:, :, None] == inside_NK[:, None, :]
        return are_equal_NCK


def teacher_rows(scores: ResponseScores) -> SupportRows:
    """The teacher's top K."""
    return SupportRows(
        ids_NK=scores.support_ids_NK,
        logprobs_NK=scores.support_logprobs_NK.astype(np.float64),
        tail_N=np.exp(scores.log_tail_mass_N.astype(np.float64)),
    )


def student_tokens(scores: ResponseScores) -> tuple[TokenArray, _Float]:
    """The student's likeliest tokens, and what the teacher gives them: [N, C] each. Raises CorruptAnswerError where the
    answer lacks them."""
    if scores.candidate_ids_NC is None or scores.candidate_logprobs_NC is None:
        raise CorruptAnswerError("the answer has no logprobs of the student's likeliest tokens, which were asked for")
    return scores.candidate_ids_NC, scores.candidate_logprobs_NC.astype(np.float64)


class TeacherSupport:
    """The teacher's top K."""

    needs_student_tokens = False

    def select(self, scores: ResponseScores, *, sampled_ids_N: TokenArray) -> Support:
        return teacher_rows(scores).finish(sampled_ids_N)


class TeacherTopPSupport:
    """The fewest of the teacher's top K that hold a mass."""

    needs_student_tokens = False

    def __init__(self, *, top_p: float = 0.98) -> None:
        """`top_p` is the teacher's mass that the support must hold, as far as teacher.top_k tokens do."""
        if not 0 < top_p < 1:
            raise ValueError(f"top_p={top_p} must be above 0 and less than 1")
        self._top_p = top_p

    def select(self, scores: ResponseScores, *, sampled_ids_N: TokenArray) -> Support:
        return teacher_rows(scores).cut_to_mass(self._top_p).finish(sampled_ids_N)


class StudentSupport:
    """The student's top K."""

    needs_student_tokens = True

    def select(self, scores: ResponseScores, *, sampled_ids_N: TokenArray) -> Support:
        ids_NC, logprobs_NC = student_tokens(scores)
        return teacher_rows(scores).joined(ids_NC, logprobs_NC).only(ids_NC).finish(sampled_ids_N)


class UnionSupport:
    """The teacher's top K and the student's."""

    needs_student_tokens = True

    def select(self, scores: ResponseScores, *, sampled_ids_N: TokenArray) -> Support:
        return teacher_rows(scores).joined(*student_tokens(scores)).finish(sampled_ids_N)


class IntersectionSupport:
    """The tokens that are in the teacher's top K and in the student's. It may be empty."""

    needs_student_tokens = True

    def select(self, scores: ResponseScores, *, sampled_ids_N: TokenArray) -> Support:
        ids_NC, _ = student_tokens(scores)
        return teacher_rows(scores).only(ids_NC).finish(sampled_ids_N)


class WithSampled:
    """Another rule's support, and the token that the student wrote."""

    def __init__(self, rule: SupportRule) -> None:
        self._rule = rule

    @property
    def needs_student_tokens(self) -> bool:
        return self._rule.needs_student_tokens

    def select(self, scores: ResponseScores, *, sampled_ids_N: TokenArray) -> Support:
        support = self._rule.select(scores, sampled_ids_N=sampled_ids_N)
        rows = SupportRows(
            ids_NK=support.ids_NK, logprobs_NK=support.teacher_logprobs_NK, tail_N=support.teacher_tail_N
        )
        sampled_N1 = scores.sampled_logprobs_N.astype(np.float64)[:, None]
        return rows.joined(sampled_ids_N[:, None], sampled_N1).finish(sampled_ids_N)


_HERE = "preceptor_client.train.teacher.support"
SUPPORTS: Seam[SupportRule] = Seam(
    what="a support",
    protocol=SupportRule,
    builtins={
        "teacher": f"{_HERE}:TeacherSupport",
        "teacher_top_p": f"{_HERE}:TeacherTopPSupport",
        "student": f"{_HERE}:StudentSupport",
        "union": f"{_HERE}:UnionSupport",
        "intersection": f"{_HERE}:IntersectionSupport",
    },
)
