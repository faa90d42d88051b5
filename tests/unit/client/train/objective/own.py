"""Parts as a user writes them, for the tests to name."""

# N = positions, K = support size

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from preceptor.wire import TokenArray
from preceptor_client.objectives import Objective, Positions
from preceptor_client.train.objective.context import StepContext
from preceptor_client.train.teacher.scored import ScoredEpisode
from preceptor_client.train.teacher.support import Support, student_tokens, teacher_rows
from preceptor_client.types import ResponseScores


class LateReverseKl(Objective):
    """The reverse KL inside the support, from a turn on, times a scale."""

    needs_normaliser = False
    min_support = 2

    def __init__(self, *, scale: float = 1.0, from_turn: int = 0) -> None:
        self._scale = scale
        self._from_turn = from_turn

    def loss(self, at: Positions) -> torch.Tensor:
        p_NK, q_NK = at.student_logprobs_NK.softmax(dim=1), at.teacher_logprobs_NK.softmax(dim=1)
        losses_N = (p_NK * (p_NK.log() - q_NK.log())).sum(dim=1)
        return self._scale * losses_N * (at.turn_N >= self._from_turn)


class OfAdvantage(Objective):
    """-A log p(y): what a credit looks like from within an objective."""

    def loss(self, at: Positions) -> torch.Tensor:
        return -at.advantage_N * at.student_sampled_logprobs_N


class Failing(Objective):
    def loss(self, at: Positions) -> torch.Tensor:
        raise KeyError("nothing here")


class Scalar(Objective):
    def loss(self, at: Positions) -> torch.Tensor:
        return at.student_sampled_logprobs_N.mean()


class Detached(Objective):
    def loss(self, at: Positions) -> torch.Tensor:
        return at.student_sampled_logprobs_N.detach()


class NotDerived:
    """Has the method, and none of what an objective says of itself."""

    def loss(self, at: Positions) -> torch.Tensor:
        return at.student_sampled_logprobs_N


class StudentsFirst:
    """The `num_tokens` likeliest of the student's tokens."""

    needs_student_tokens = True

    def __init__(self, *, num_tokens: int = 2) -> None:
        self._num_tokens = num_tokens

    def select(self, scores: ResponseScores, *, sampled_ids_N: TokenArray) -> Support:
        ids_NC, logprobs_NC = student_tokens(scores)
        rows = teacher_rows(scores).joined(ids_NC, logprobs_NC).only(ids_NC[:, : self._num_tokens])
        return rows.finish(sampled_ids_N)


class SilentSupport:
    """Does not say whether it needs the student's tokens."""

    def select(self, scores: ResponseScores, *, sampled_ids_N: TokenArray) -> Support:
        return teacher_rows(scores).finish(sampled_ids_N)


class EvenTurns:
    """Weight 2 in the student's even turns, 0 in the others."""

    def weigh(self, scored: Sequence[ScoredEpisode], at: StepContext) -> list[npt.NDArray[np.float64]]:
        del at
        return [2.0 * (one.episode.turns_T[one.scores.positions_N] % 2 == 0) for one in scored]


class FailingWeights:
    def weigh(self, scored: Sequence[ScoredEpisode], at: StepContext) -> list[npt.NDArray[np.float64]]:
        raise IndexError(f"step {at.step} has {len(scored)} episodes")


class GrowingStrength:
    """1, 1.1, 1.2, ... along each response."""

    def strength(self, scored: Sequence[ScoredEpisode], at: StepContext) -> list[npt.NDArray[np.float64]]:
        del at
        return [1.0 + 0.1 * np.arange(len(one.scores.positions_N), dtype=np.float64) for one in scored]
