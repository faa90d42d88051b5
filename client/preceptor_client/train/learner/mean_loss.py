"""Measures the loss of held-out episodes, reduced as a step's loss is. Computes no gradients."""

# N = scored positions

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from preceptor_client.train.learner.batches import micro_batches
from preceptor_client.train.learner.learner import TaskLoss
from preceptor_client.train.objective.context import StepContext
from preceptor_client.train.teacher.scored import ScoredEpisode


class MeasuredLoss:
    """Of one task."""

    def __init__(self, task: TaskLoss, *, size: int, context: Callable[[int], StepContext]) -> None:
        """`size` is the number of episodes in a forward."""
        self._task = task
        self._size = size
        self._context = context

    @torch.no_grad()
    def mean(self, scored: Sequence[ScoredEpisode], *, step: int) -> float:
        """Nats; without credit, and every position counts as the reduction says."""
        shaped = self._task.shaping.measure(scored, self._context(step))
        total, term = 0.0, shaped.terms.objective
        for indices in micro_batches(shaped.scored, size=self._size):
            batch = self._task.loss.of([shaped.scored[index] for index in indices])
            total += float(batch.losses_N.double().cpu().numpy() @ term.of(indices))
        return total / term.denominator
