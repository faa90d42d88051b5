"""ROPD (arXiv 2605.07396): a judge says which points of a prompt's rubric an answer meets; their share is its reward.

The rubrics stand in the data, {"prompt": ..., "rubric": {"names the capital": 2, "is one sentence": 1}}, points with
their weights; a teacher writes them before the run, from its answers and the student's. Nothing is learnt from a
distribution of the teacher's: the advantage among a prompt's answers is all that trains.

Settings:
    data.extra_fields = "keep"
    rollout.responses_per_prompt = 4
    objective.coefficient = 0
    credit.kind = "grpo"
    [[rewards]]
    kind = "ropd:Rubric"
    options = { base_url = "http://127.0.0.1:8001", model = "a-judge" }
"""

import asyncio

from preceptor_client.extend import Episode, Judge

ASK = "Question: {prompt}\n\nAnswer: {response}\n\nDoes the answer meet this: %s?\nEnd with 1 if it does, else with 0."


class Rubric:
    """The weighted share of the points that the judge finds met."""

    def __init__(self, base_url: str, model: str) -> None:
        self.server = (base_url, model)

    async def reward(self, episode: Episode, text: str) -> float:
        rubric = episode.example.extra["rubric"]
        judges = [Judge(*self.server, prompt=ASK.replace("%s", point), highest=1) for point in rubric]
        met = await asyncio.gather(*(judge.reward(episode, text) for judge in judges))
        points = zip(rubric.values(), met, strict=True)
        return float(sum(weight * is_met for weight, is_met in points) / sum(rubric.values()))
