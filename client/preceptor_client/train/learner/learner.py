"""One optimizer step from scored rollouts: loss, backward, clip, AdamW. Knows nothing of sampling or I/O."""

# N = scored positions

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from preceptor_client.train.errors import TrainingStoppedError
from preceptor_client.train.learner.batches import micro_batches
from preceptor_client.train.learner.columns import StudentColumns
from preceptor_client.train.learner.config import OptimizerConfig
from preceptor_client.train.learner.loss import Loss
from preceptor_client.train.learner.measure import StudentMeasure
from preceptor_client.train.objective.reduction import Term
from preceptor_client.train.objective.shaping import StepTerms
from preceptor_client.train.student.student import Student
from preceptor_client.train.teacher.scored import ScoredEpisode


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdateResult:
    """What one step did."""

    num_positions: int
    """Those with a score and a weight."""
    loss: float
    """What was minimised, before the update: nats per position, reduced as objective.reduction says, and the credit's
    loss on top where there is one."""
    credit_loss: float | None = None
    """The part of it that is the credit's, its coefficient included; None without credit."""
    columns: list[StudentColumns]
    """One entry per rollout of the step, before the update."""
    gradient_norm: float
    """Before clipping."""
    learning_rate: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Gradients:
    """What was computed on the way to the gradients of a step."""

    loss: float
    """What the gradients are of."""
    credit_loss: float | None
    """The part of it that is the credit's; None without credit."""
    columns: list[StudentColumns]
    """One entry per rollout of the step."""


class Update:
    """Owns the optimizer."""

    def __init__(self, student: Student, *, config: OptimizerConfig, loss: Loss, temperature: float) -> None:
        """`temperature` is that of the loss."""
        self._student = student
        self._config = config
        self._loss = loss
        self._temperature = temperature
        self._parameters = [parameter for parameter in student.model.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(
            self._parameters,
            lr=config.learning_rate,
            betas=config.betas,
            weight_decay=config.weight_decay,
            fused=True,
        )

    def apply(self, scored: Sequence[ScoredEpisode], *, terms: StepTerms, step: int) -> UpdateResult | None:
        """Moves the student. None where no position counts in any term: the step is skipped and the weights stay."""
        if terms.is_empty:
            return None
        gradients = self.accumulate_gradients(scored, terms=terms)
        loss = gradients.loss
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
            num_positions=terms.num_positions,
            loss=loss,
            credit_loss=gradients.credit_loss,
            columns=gradients.columns,
            gradient_norm=norm,
            learning_rate=learning_rate,
        )

    def accumulate_gradients(self, scored: Sequence[ScoredEpisode], *, terms: StepTerms) -> Gradients:
        """Adds the gradient of the step's loss. Its denominators are those of the whole step: micro-batches do not
        change it."""
        measure = StudentMeasure(self._student, scored, temperature=self._temperature)
        loss, credit_loss = 0.0, 0.0
        for indices in micro_batches(scored, size=self._config.micro_batch_size):
            batch = self._loss.of([scored[index] for index in indices])
            parts: list[torch.Tensor] = []
            if not terms.objective.is_empty:
                part, value = _reduced(batch.losses_N, terms.objective, indices)
                parts.append(part)
                loss += value
            if terms.credit is not None and not terms.credit.is_empty:
                assert batch.credit_losses_N is not None, "a term of credit, and rollouts without"
                part, value = _reduced(batch.credit_losses_N, terms.credit, indices)
                parts.append(part)
                credit_loss += value
            torch.autograd.backward(sum(parts[1:], start=parts[0]))
            measure.add(indices, batch.hidden_ND, batch.losses_N.detach())
        return Gradients(
            loss=loss + credit_loss,
            credit_loss=None if terms.credit is None else credit_loss,
            columns=measure.finish(),
        )

    def _learning_rate(self, step: int) -> float:
        if step >= self._config.warmup_steps:
            return self._config.learning_rate
        return self._config.learning_rate * step / self._config.warmup_steps


def _reduced(losses_N: torch.Tensor, term: Term, indices: Sequence[int]) -> tuple[torch.Tensor, float]:
    """A batch's part of a term, to derive, and its value in float64."""
    weighted_N = losses_N * torch.from_numpy(term.of(indices)).to(losses_N)
    return weighted_N.sum() / term.denominator, float(weighted_N.detach().double().sum()) / term.denominator
