"""SOD (arXiv 2605.07725): the reward's advantage of a response, plus the teacher's of each token, turn by turn.

A token's credit is A + w_k (log q - log p): A is GRPO's advantage of its response, q the teacher, p the student that
wrote it. In turn k the two are d_k apart, the mean of |log q - log p| over the turn's tokens, and

    w_k = min((d_0 + eps) / (d_1 + eps) * ... * (d_(k-1) + eps) / (d_k + eps), 1 + delta)

so that the teacher counts less in turns where the student has drifted away from it. The authors' code has delta = 0.5.
`grpo = false` leaves the teacher's half alone, which needs no rewards. Turns come with an [environment].

Settings:

    objective.coefficient = 0.0  # the credit alone
    credit = { kind = "sod:Sod", options = { delta = 0.2, grpo = true } }
    rewards = [{ kind = "match" }]
"""

from collections.abc import Sequence

import numpy as np
from preceptor_client.extend import Grpo, ScoredEpisode, StepContext, teacher_gap


class Sod:
    def __init__(self, *, delta: float = 0.2, epsilon: float = 1e-6, grpo: bool = True) -> None:
        self.delta, self.epsilon = delta, epsilon
        self.compares_responses = grpo

    def credit(self, scored: Sequence[ScoredEpisode], at: StepContext) -> list[np.ndarray]:
        of_teacher = [self._weights(one) * teacher_gap(one) for one in scored]
        if not self.compares_responses:
            return of_teacher
        return [a_N + b_N for a_N, b_N in zip(Grpo().credit(scored, at), of_teacher, strict=True)]

    def _weights(self, one: ScoredEpisode) -> np.ndarray:
        turn_N, num_tokens = one.turns_N, np.maximum(np.bincount(one.turns_N), 1)
        distance_N = (np.bincount(turn_N, np.abs(teacher_gap(one))) / num_tokens)[turn_N] + self.epsilon
        return np.minimum(distance_N[:1] / distance_N, 1 + self.delta)  # the product telescopes
