"""Extrapolation Cliff (arXiv 2605.08737): go beyond the teacher where it is unsure, and only little by little.

The target of ExOPD is teacher^lambda / start^(lambda - 1), start being the untrained student: a lambda above 1 goes
beyond the teacher. Here lambda rises over the first steps, and stays 1 where the teacher is sure: where its likeliest
token has more than `max_probability`, or its entropy is below `min_entropy` nats. The two thresholds are from a note on
the paper, the slow rise is this example's; the built-in `capped_when_sure` is the same without it.

Settings:

    [objective]
    kind = "lsm"
    extrapolation_rule = "extrapolation:Rising"
    extrapolation_rule_options = { strength = 1.25, num_steps = 100, max_probability = 0.9, min_entropy = 0.5 }
"""

from collections.abc import Sequence

import numpy as np
from preceptor_client.extend import ScoredEpisode, StepContext


class Rising:
    def __init__(self, *, strength: float, num_steps: int, max_probability: float, min_entropy: float) -> None:
        self.strength_in_the_end, self.num_steps = strength, num_steps
        self.max_probability, self.min_entropy = max_probability, min_entropy

    def strength(self, scored: Sequence[ScoredEpisode], at: StepContext) -> list[np.ndarray]:
        strength = 1 + (self.strength_in_the_end - 1) * min(at.step / self.num_steps, 1)
        return [np.where(self._is_sure_N(one), 1.0, strength) for one in scored]

    def _is_sure_N(self, one: ScoredEpisode) -> np.ndarray:
        is_sure_N = np.exp(one.scores.support_logprobs_NK[:, 0]) > self.max_probability
        if one.scores.entropies_N is None:  # of a mixture of teachers, or from an engine that has none
            return is_sure_N
        return is_sure_N | (one.scores.entropies_N < self.min_entropy)
