"""One optimizer step from scored rollouts: loss, backward, clip, AdamW. Knows nothing of sampling or I/O."""

# N = scored positions

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from preceptor_client.train.config import OptimizerConfig
from preceptor_client.train.errors import TrainingStoppedError
from preceptor_client.train.loss import micro_batches, position_losses
from preceptor_client.train.scoring import ScoredRollout
from preceptor_client.train.student import Student


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdateResult:
    """What one step did. Means are over the scored positions of the step, before the update."""

    num_positions: int
    loss: float
    """Nats per position."""
    student_mass: float
    """The student's probability inside the teacher's support, of its whole vocabulary."""
    gradient_norm: float
    """Before clipping."""
    learning_rate: float


class Update:
    """Owns the optimizer."""

    def __init__(self, student: Student, *, config: OptimizerConfig, temperature: float) -> None:
        self._student = student
        self._config = config
        self._temperature = temperature
        self._parameters = [parameter for parameter in student.model.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(
            self._parameters,
            lr=config.learning_rate,
            betas=config.betas,
            weight_decay=config.weight_decay,
            fused=True,
        )

    def apply(self, scored: Sequence[ScoredRollout], *, step: int) -> UpdateResult | None:
        """Moves the student. None where no position has a score: the step is skipped and the weights stay."""
        totals = self.accumulate_gradients(scored)
        if totals is None:
            return None
        num_positions, loss, student_mass = totals
        # Called on every step, also far below the clip: it measures the norm.
        norm = float(torch.nn.utils.clip_grad_norm_(self._parameters, self._config.gradient_clip))
        if not all(map(math.isfinite, (loss, norm, student_mass))):
            self.optimizer.zero_grad(set_to_none=True)
            raise TrainingStoppedError(
                f"step {step}: the loss is {loss} and the norm of its gradient {norm}: the weights were left as they "
                "were before the step; a lower optimizer.learning_rate or student.dtype=float32 may help"
            )
        learning_rate = self._learning_rate(step)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return UpdateResult(
            num_positions=num_positions,
            loss=loss,
            student_mass=student_mass,
            gradient_norm=norm,
            learning_rate=learning_rate,
        )

    def accumulate_gradients(self, scored: Sequence[ScoredRollout]) -> tuple[int, float, float] | None:
        """Adds the gradient of the mean loss over all scored positions of the step; returns their number, that mean,
        and the mean student mass. The mean is global: micro-batches do not change it."""
        num_positions = sum(len(one.scores.positions_N) for one in scored)
        if not num_positions:
            return None
        loss_sum = mass_sum = 0.0
        for batch in micro_batches(scored, size=self._config.micro_batch_size):
            loss_N, mass_N = position_losses(self._student, batch, temperature=self._temperature)
            torch.autograd.backward(loss_N.sum() / num_positions)
            loss_sum += float(loss_N.detach().double().sum())
            mass_sum += float(mass_N.double().sum())
        return num_positions, loss_sum / num_positions, mass_sum / num_positions

    def _learning_rate(self, step: int) -> float:
        if step >= self._config.warmup_steps:
            return self._config.learning_rate
        return self._config.learning_rate * step / self._config.warmup_steps
