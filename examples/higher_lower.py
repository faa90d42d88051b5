"""An environment of one's own (no paper): the student guesses the example's answer, and is told higher or lower.

A right guess is worth 1, and less for each guess before it. What the environment says is context: the student reads it,
and only what the student writes is trained on. `credit.kind = "grpo"` learns from the reward.

Settings:
    environment = { kind = "higher_lower:HigherLower", options = { highest = 100 } }
    rollout.max_turns = 4
"""

import re

from preceptor_client.extend import Example, Messages, Turn


class HigherLower:
    """One is made for each episode, so that it may keep what it knows of it."""

    def __init__(self, highest: int = 100) -> None:
        self.highest = highest
        self.number, self.reward = 0, 1.0

    async def reset(self, example: Example) -> Messages:
        self.number = int(example.answer or 0)
        return [{"role": "user", "content": f"Guess a number from 1 to {self.highest}."}]

    async def step(self, text: str) -> Turn:
        guess = int((re.findall(r"\d+", text) or ["0"])[-1])
        if guess == self.number:
            return Turn(reward=self.reward, done=True, info={"is_found": True})
        self.reward *= 0.8
        hint = "higher" if guess < self.number else "lower"
        return Turn(messages=[{"role": "user", "content": f"It is {hint}."}], reward_if_cut=0.0)
