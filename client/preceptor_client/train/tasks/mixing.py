"""Deals the prompts of a step out to tasks, as a function of the step alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

TaskOrder = Literal["mix", "alternate"]


class TaskMix:
    """Deals prompts out to tasks by their weights.

    With "mix" every step has prompts of several tasks, with "alternate" of one. After any number of prompts (or steps)
    each task has had its share, up to one. A resumed run deals as the uninterrupted one does.
    """

    def __init__(self, weights: Sequence[float], *, prompts_per_step: int, order: TaskOrder = "mix") -> None:
        total = sum(weights)
        self._shares = [weight / total for weight in weights]
        self._prompts_per_step = prompts_per_step
        self._is_alternating = order == "alternate"
        self._num_dealt = [0] * len(weights)
        self._step = 0

    def step(self, step: int) -> list[tuple[int, int]]:
        """For each task its first prompt, counted over the run, and the number of its prompts in this step; steps
        count from 1."""
        if step <= self._step:
            self._step, self._num_dealt = 0, [0] * len(self._shares)
        while self._step < step - 1:
            self._deal()
        before = list(self._num_dealt)
        self._deal()
        return [(first, now - first) for first, now in zip(before, self._num_dealt, strict=True)]

    def _deal(self) -> None:
        self._step += 1
        size = self._prompts_per_step
        for _ in range(1 if self._is_alternating else size):
            task = self._most_behind()
            self._num_dealt[task] += size if self._is_alternating else 1

    def _most_behind(self) -> int:
        """The first of the tasks that lack most of their share of what is dealt with the next prompt."""
        num_next = sum(self._num_dealt) + (self._prompts_per_step if self._is_alternating else 1)
        lacking = [share * num_next - dealt for share, dealt in zip(self._shares, self._num_dealt, strict=True)]
        return max(range(len(lacking)), key=lambda task: lacking[task])
