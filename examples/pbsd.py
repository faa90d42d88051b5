"""PBSD (arXiv 2605.05040, from its abstract): the teacher's answer to a prompt is preferred to the student's.

The loss of a pair is -log sigmoid(m), m = beta (log p/q of the teacher's text - log p/q of the student's), with p the
student and q the teacher. A policy gradient with advantage +-beta sigmoid(-m) on each token has its gradient, exactly
where the student that wrote or read the texts is the one that learns: always here, as a step's texts are used once.

Settings:
    credit.kind = "pbsd:Preference"
    objective = { coefficient = 0, reduction = "fixed_scale", reduction_scale = 8 }  # pairs in a step
    rollout.engine = "mixed"
    rollout.engine_options.every_prompt = true
    [[rollout.engine_options.parts]]
    kind = "student"
    [[rollout.engine_options.parts]]
    kind = "openai"
    options = { base_url = "http://127.0.0.1:8000", model = "big/model", num_candidates = 1 }
"""

from collections.abc import Sequence

import numpy as np
from preceptor_client.extend import ScoredEpisode, StepContext, teacher_gap


class Preference:
    """+-beta sigmoid(-m) on every scored token of a pair."""

    def __init__(self, beta: float = 0.1) -> None:
        self.beta = beta

    def credit(self, scored: Sequence[ScoredEpisode], at: StepContext) -> list[np.ndarray]:
        credit = [np.zeros(len(one.scores.positions_N)) for one in scored]
        gap = [teacher_gap(one).sum() for one in scored]  # log q/p of a whole text
        places = {(one.episode.slot, one.episode.info["engine"]): place for place, one in enumerate(scored)}
        for slot in {slot for slot, _ in places}:
            if {(slot, "student"), (slot, "openai")} <= places.keys():
                won, lost = places[slot, "openai"], places[slot, "student"]
                pull = self.beta * np.exp(-np.logaddexp(0, self.beta * (gap[lost] - gap[won])))
                credit[won], credit[lost] = credit[won] + pull, credit[lost] - pull
        return credit
