"""BRTS (arXiv 2605.09725) without its retry with a hint: beside the student, a teacher answers each prompt twice.

Of its right answers the one is trained on that agrees most with the student's 16 likeliest tokens; the objective there
weighs 0.05 of what it weighs on the student's own tokens. Without a right answer, the student's are all that there is.

Settings:
    weights.kind = "brts:TeachersText"
    rollout.engine = "mixed"
    rollout.engine_options.every_prompt = true
    [[rollout.engine_options.parts]]
    kind = "student"
    [[rollout.engine_options.parts]]
    kind = "openai"
    options.base_url = "http://127.0.0.1:8000"
    options.model = "big/model"
    options.choose = "most_overlap"
    options.min_reward = 1
    options.reward.kind = "brts:LastNumber"
"""

import re
from collections.abc import Sequence

import numpy as np
from preceptor_client.extend import Episode, ScoredEpisode, StepContext


class LastNumber:
    """1 where the last number of the text is the answer."""

    def reward(self, episode: Episode, text: str) -> float:
        return float(re.findall(r"-?\d+(?:\.\d+)?", text)[-1:] == [episode.example.answer])


class TeachersText:
    """The share of the loss by who wrote."""

    def weigh(self, scored: Sequence[ScoredEpisode], at: StepContext) -> list[np.ndarray]:
        weights = {"student": 1.0, "openai": 0.05}
        return [np.full(len(one.scores.positions_N), weights[str(one.episode.info["engine"])]) for one in scored]
