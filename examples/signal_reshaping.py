"""Signal reshaping (arXiv 2605.07276, from its abstract): rewards in layers, and scores for the student's turns.

Code that compiles but is not right earns more than code that does not compile, so that a group without a right answer
has a ranking. GRPO's advantage stays as it is; the tokens of a turn get it times the turn's score, which an environment
gives as `info["turn_scores"]`. Without scores each turn counts 1.

Settings:
    rollout.responses_per_prompt = 4
    credit.kind = "signal_reshaping:ByTurn"
    rewards = [{ kind = "signal_reshaping:Layers" }]
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from preceptor_client.extend import Episode, Grpo, ScoredEpisode, StepContext


class Layers:
    """0, or 0.5 for what compiles, or 1 for what holds the answer besides."""

    def reward(self, episode: Episode, text: str) -> float:
        try:
            compile(text, "answer", "exec")
        except (SyntaxError, ValueError):
            return 0.0
        return 1.0 if any(answer in text for answer in episode.example.answers) else 0.5


class ByTurn(Grpo):
    """GRPO's credit, scaled turn by turn."""

    def credit(self, scored: Sequence[ScoredEpisode], at: StepContext) -> list[np.ndarray]:
        credit = super().credit(scored, at)
        for one, credit_N in zip(scored, credit, strict=True):
            scores: Any = one.episode.info.get("turn_scores")
            if scores is not None:
                credit_N *= np.array(scores)[one.episode.turns_T[one.scores.positions_N]]
        return credit
