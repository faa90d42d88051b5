"""Parts that go wrong, one of each kind, as a user may write them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from preceptor_client.objectives import Objective
from preceptor_client.train.data.examples import Example
from preceptor_client.train.environment.environment import Turn
from preceptor_client.train.rollout.episode import Episode

NO_CLASS = 3
HANGS_SECONDS = 60


def is_bad(example: Example) -> bool:
    """Every fourth example."""
    return example.index % 4 == 0


class Talk:
    """An environment of two turns in which nothing is wrong."""

    def __init__(self, word: str = "Word", num_turns: int = 2) -> None:
        self.word = word
        self.num_turns = num_turns
        self.is_bad = False

    async def reset(self, example: Example) -> list[dict[str, str]]:
        self.is_bad = is_bad(example)
        return [{"role": "user", "content": f"{self.word} {example.index}"}]

    async def step(self, text: str) -> Any:  # Any: those below give what they should not
        self.num_turns -= 1
        if self.num_turns == 0:
            return Turn(reward=1.0, done=True)
        return Turn(messages=[{"role": "user", "content": "again"}])


class Raises(Talk):
    async def step(self, text: str) -> Any:
        if self.is_bad:
            raise KeyError("door")
        return await super().step(text)


class RaisesLater(Raises):
    """For every example from the fifth on."""

    async def reset(self, example: Example) -> list[dict[str, str]]:
        messages = await super().reset(example)
        self.is_bad = example.index >= 4
        return messages


class Hangs(Talk):
    async def step(self, text: str) -> Any:
        if self.is_bad:
            time.sleep(HANGS_SECONDS)
        return await super().step(text)


class GivesText(Talk):
    async def step(self, text: str) -> Any:
        return "well" if self.is_bad else await super().step(text)


class GivesNaN(Talk):
    async def step(self, text: str) -> Any:
        return Turn(reward=float("nan"), done=True) if self.is_bad else await super().step(text)


class NeverEnds(Talk):
    def __init__(self) -> None:
        super().__init__(num_turns=1_000_000)


class WithTool(Talk):
    """Only for the bad examples, so that a template without tools refuses those."""

    @property
    def tools(self) -> list[dict[str, Any]]:  # Any: JSON schemas
        function = {"name": "f", "description": "d", "parameters": {"type": "object", "properties": {}}}
        return [{"type": "function", "function": function}] if self.is_bad else []


class NoRoom(Talk):
    def __init__(self) -> None:
        raise RuntimeError("no licence")


class NoStep:
    async def reset(self, example: Example) -> list[dict[str, str]]:
        return []


class OtherStep(NoStep):
    async def step(self) -> Turn:
        return Turn(done=True)


class OtherLoss(Objective):
    def loss(self) -> torch.Tensor:  # type: ignore[override]  # that is what is wrong with it
        return torch.zeros(1)


class SometimesNaN:
    def reward(self, episode: Episode, text: str) -> float:
        return float("nan") if is_bad(episode.example) else 0.5


class ShortCredit:
    def credit(self, scored: Sequence[object], at: object) -> Any:
        return [np.zeros(1) for _ in scored]


class NumberAsCredit:
    def credit(self, scored: Sequence[object], at: object) -> Any:
        return 3


class RaggedCredit:
    def credit(self, scored: Sequence[object], at: object) -> Any:
        return [[0.0, [1.0]] for _ in scored]


class LazyWeights:
    """Fails once it is read."""

    def weigh(self, scored: Sequence[object], at: object) -> Any:
        yield np.zeros(1)
        raise IndexError("no more")
