"""Defines the seam for credit (advantages), which the loss turns into a clipped policy gradient."""

# N = scored positions of an episode

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from preceptor_client.objectives.floors import TEACHER_FLOOR
from preceptor_client.train.objective.context import StepContext
from preceptor_client.train.objective.per_position import Columns, checked_columns
from preceptor_client.train.objective.reduction import WeightArray
from preceptor_client.train.teacher.scored import ScoredEpisode


class CreditRule(Protocol):
    """Gives credit. One class, named in TOML: credit.kind = "package.module:Name". A class whose credit compares the
    responses to one prompt says so by an attribute `compares_responses = True`."""

    def credit(self, scored: Sequence[ScoredEpisode], at: StepContext) -> Sequence[npt.NDArray[np.floating]]:
        """One array [N] per episode, finite, of either sign: row i belongs to `scores.positions_N[i]`."""
        ...


class TeacherGap:
    """log q - log p of each token: how much likelier the teacher finds it than the student that wrote it did. A teacher
    that gives it less than -100 nats counts as -100."""

    def credit(self, scored: Sequence[ScoredEpisode], at: StepContext) -> list[WeightArray]:
        del at
        return [teacher_gap(one) for one in scored]


def teacher_gap(one: ScoredEpisode) -> WeightArray:
    """log q - log p of each scored token of one episode."""
    teacher_N = np.maximum(one.scores.sampled_logprobs_N.astype(np.float64), TEACHER_FLOOR)
    student_N = one.episode.student.logprobs_T[one.scores.positions_N].astype(np.float64)
    gap_N: WeightArray = teacher_N - student_N
    return gap_N


def checked_credit(columns: Columns, *, scored: Sequence[ScoredEpisode]) -> list[WeightArray]:
    """What a rule gave. Raises InvalidWeightsError where it does not fit."""
    return checked_columns(
        columns,
        what="credit values",
        scored=scored,
        is_wrong=lambda credit_N: not np.isfinite(credit_N).all(),
        wrong="NaN or infinity",
    )
