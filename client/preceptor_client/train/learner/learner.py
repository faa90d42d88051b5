"""One optimizer step from scored rollouts: loss, backward, clip, AdamW. Knows nothing of sampling or I/O."""

# N = scored positions

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from preceptor_client.train.errors import TrainingStoppedError
from preceptor_client.train.learner.batches import micro_batches
from preceptor_client.train.learner.columns import StudentColumns
from preceptor_client.train.learner.config import OptimizerConfig
from preceptor_client.train.learner.loss import Loss
from preceptor_client.train.learner.measure import StudentMeasure
from preceptor_client.train.objective.weights import WeightArray
from preceptor_client.train.student.student import Student
from preceptor_client.train.teacher.scored import ScoredEpisode


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdateResult:
    """What one step did."""

    num_positions: int
    """Those with a score and a weight."""
    loss: float
    """Nats per position: the mean under the step's weights, before the update."""
    columns: list[StudentColumns]
    """One entry per rollout of the step, before the update."""
    gradient_norm: float
    """Before clipping."""
    learning_rate: float


class Update:
    """Owns the optimizer."""

    def __init__(self, student: Student, *, config: OptimizerConfig, loss: Loss, temperature: float) -> None:
        """`temperature` is that of the loss."""
        self._config = config
        self._loss = loss
        self._temperature = temperature
        self._parameters = [parameter for parameter in student.module.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(
            self._parameters,
            lr=config.learning_rate,
            betas=config.betas,
            weight_decay=config.weight_decay,
            fused=True,
        )

    def apply(
        self, scored: Sequence[ScoredEpisode], *, weights: Sequence[WeightArray], step: int
    ) -> UpdateResult | None:
        """Moves the student. `weights` are those of `position_weights`, one array per rollout. None where no position
        has a score and a weight: the step is skipped and the weights stay."""
        if not sum(float(weights_N.sum()) for weights_N in weights):
            return None
        loss, columns = self.accumulate_gradients(scored, weights=weights)
        # Called on every step, also far below the clip: it measures the norm.
        norm = float(torch.nn.utils.clip_grad_norm_(self._parameters, self._config.gradient_clip))
        if not (math.isfinite(loss) and math.isfinite(norm)):
            self.optimizer.zero_grad(set_to_none=True)
            raise TrainingStoppedError(
                f"step {step}: the loss is {loss} and the norm of its gradient {norm}: the weights were left as they "
                "were before the step; a lower optimizer.learning_rate may help"
            )
        learning_rate = self._learning_rate(step)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return UpdateResult(
            num_positions=sum(int((weights_N > 0).sum()) for weights_N in weights),
            loss=loss,
            columns=columns,
            gradient_norm=norm,
            learning_rate=learning_rate,
        )

    def accumulate_gradients(
        self, scored: Sequence[ScoredEpisode], *, weights: Sequence[WeightArray]
    ) -> tuple[float, list[StudentColumns]]:
        """Adds the gradient of the mean loss over the step, and returns that mean. It is global: micro-batches do not
        change it."""
        total = sum(float(weights_N.sum()) for weights_N in weights)
        measure = StudentMeasure(scored, temperature=self._temperature)
        loss = 0.0
        for indices in micro_batches(scored, size=self._config.micro_batch_size):
            batch = self._loss.of([scored[index] for index in indices], dense_rows_M=measure.rows_of(indices))
            weights_N = torch.from_numpy(np.concatenate([weights[index] for index in indices]))
            weighted_N = batch.losses_N * weights_N.to(batch.losses_N)
            torch.autograd.backward(weighted_N.sum() / total)
            loss += float(weighted_N.detach().double().sum()) / total
            assert batch.dense_logits_MV is not None
            measure.add(indices, batch.dense_logits_MV, batch.losses_N.detach())
        return loss, measure.finish()

    def _learning_rate(self, step: int) -> float:
        if step >= self._config.warmup_steps:
            return self._config.learning_rate
        return self._config.learning_rate * step / self._config.warmup_steps
