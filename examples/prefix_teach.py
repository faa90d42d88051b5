"""Prefix Teach (arXiv 2605.13643): trains on each response up to where the teacher loses its grip on it.

The teacher's margin at a token is its probability of the likeliest of the student's top-K tokens less that of the
second. Its means over sentences are one level, or two with a drop between: whatever has the lower BIC. What follows the
drop has weight 0. This is from a note on the paper, which does not give the paper's formula of the margin.

Settings:

    objective.support = "union"  # has the teacher score the student's own top-K
    weights = { kind = "prefix_teach:PrefixTeach", options = { ends = ".!?\\n" } }
"""

from collections.abc import Sequence

import numpy as np
from preceptor_client.extend import ScoredEpisode, StepContext, student_tokens


class PrefixTeach:
    def __init__(self, *, ends: str) -> None:
        self.ends = tuple(ends)

    def weigh(self, scored: Sequence[ScoredEpisode], at: StepContext) -> list[np.ndarray]:
        return [self._weights(one, at.tokenizer.batch_decode(one.sampled_ids_N[:, None])) for one in scored]

    def _weights(self, one: ScoredEpisode, tokens: list[str]) -> np.ndarray:
        second_N, first_N = np.sort(np.exp(student_tokens(one.scores)[1]), axis=1)[:, -2:].T
        sentence_N = np.cumsum([token.endswith(self.ends) for token in ["", *tokens]], dtype=int)[:-1]
        means_S = np.bincount(sentence_N, first_N - second_N) / np.bincount(sentence_N)
        return np.where(sentence_N < num_before_drop(means_S), 1.0, 0.0)


def num_before_drop(means_S: np.ndarray) -> int:
    """Sentences before the drop; two or more lie on either side of it. All of them, where there is none."""
    bics, size = {len(means_S): 0.0}, len(means_S)
    for at in range(2, size - 1):
        errors = [((level - level.mean()) ** 2).sum() for level in (means_S, means_S[:at], means_S[at:])]
        if means_S[:at].mean() > means_S[at:].mean():  # two parameters more than one level has, which is at 0
            bics[at] = size * np.log((errors[1] + errors[2] + 1e-12) / (errors[0] + 1e-12)) + 2 * np.log(size)
    return min(bics, key=lambda num: bics[num])
