"""Credits of published works, as a user writes them: one class each, over the seam.

RLSD is arXiv 2604.03128 as swift computes it (`rl_core/advantage.py`); SOD is arXiv 2605.07725 and its code.
"""

# N = scored positions

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from preceptor_client.train.objective.context import StepContext
from preceptor_client.train.objective.credit import teacher_gap
from preceptor_client.train.objective.grpo import Grpo
from preceptor_client.train.teacher.scored import ScoredEpisode

_Float = npt.NDArray[np.float64]


class Rlsd:
    """A ((1 - lam) + lam clip(exp(sign(A) delta), 1 - clip, 1 + clip)), delta = log q - log p of the sampled token."""

    compares_responses = True

    def __init__(self, *, lam: float = 0.5, clip: float = 0.2) -> None:
        self._lam = lam
        self._clip = clip
        self._grpo = Grpo()

    def credit(self, scored: Sequence[ScoredEpisode], at: StepContext) -> list[_Float]:
        advantages = self._grpo.credit(scored, at)
        pairs = zip(scored, advantages, strict=True)
        return [advantage_N * self._factor(one, advantage_N) for one, advantage_N in pairs]

    def _factor(self, one: ScoredEpisode, advantage_N: _Float) -> _Float:
        ratio_N = np.exp(np.sign(advantage_N) * teacher_gap(one))
        return (1 - self._lam) + self._lam * np.clip(ratio_N, 1 - self._clip, 1 + self._clip)


class Sod:
    """A of GRPO + w_k (log q - log p) in turn k, with d_k the mean of |log p - log q| over the turn's tokens and

        w_k = min(prod over u < k of (d_u + eps) / (d_(u+1) + eps), 1 + delta)

    The product telescopes: (d_0 + eps) / (d_k + eps).
    """

    compares_responses = True

    def __init__(self, *, delta: float = 0.2, epsilon: float = 1e-6) -> None:
        self._delta = delta
        self._epsilon = epsilon
        self._grpo = Grpo()

    def credit(self, scored: Sequence[ScoredEpisode], at: StepContext) -> list[_Float]:
        advantages = self._grpo.credit(scored, at)
        return [
            advantage_N + self._weights(one) * teacher_gap(one)
            for one, advantage_N in zip(scored, advantages, strict=True)
        ]

    def _weights(self, one: ScoredEpisode) -> _Float:
        turn_N, gap_N = one.episode.turns_T[one.scores.positions_N], np.abs(teacher_gap(one))
        weights_N = np.zeros(len(turn_N))
        first: float | None = None
        for turn in np.unique(turn_N):
            distance = float(gap_N[turn_N == turn].mean()) + self._epsilon
            first = distance if first is None else first
            weights_N[turn_N == turn] = min(first / distance, 1 + self._delta)
        return weights_N
