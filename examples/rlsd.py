"""RLSD (arXiv 2604.03128): the reward says which way a token is pushed, the teacher how hard.

A token's credit is A ((1 - lam) + lam clip(exp(sign(A) delta), 1 - clip, 1 + clip)): A is GRPO's advantage of its
response, delta = log q - log p of the token, q the teacher and p the student that wrote it (as swift computes it,
`rl_core/advantage.py`). A token of a good response counts more where the teacher likes it, one of a bad response where
it does not. The paper's teacher is the student itself that has read the answer: serve the student's own model, and give
each line of data a `teacher_prompt` that holds the answer.

Settings:

    [objective]
    coefficient = 0.0  # the credit alone

    [credit]
    kind = "rlsd:Rlsd"
    options = { lam = 0.5, clip = 0.2 }

    [[rewards]]
    kind = "match"
"""

from collections.abc import Sequence

import numpy as np
from preceptor_client.extend import Grpo, ScoredEpisode, StepContext, teacher_gap


class Rlsd:
    compares_responses = True

    def __init__(self, *, lam: float = 0.5, clip: float = 0.2) -> None:
        self.lam, self.clip = lam, clip

    def credit(self, scored: Sequence[ScoredEpisode], at: StepContext) -> list[np.ndarray]:
        credit: list[np.ndarray] = []
        for advantage_N, one in zip(Grpo().credit(scored, at), scored, strict=True):
            ratio_N = np.exp(np.sign(advantage_N) * teacher_gap(one)).clip(1 - self.clip, 1 + self.clip)
            credit.append(advantage_N * ((1 - self.lam) + self.lam * ratio_N))
        return credit
