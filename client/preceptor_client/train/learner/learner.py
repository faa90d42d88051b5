"""One optimizer step from scored episodes: loss, backward, clip, AdamW. Knows nothing of sampling or I/O."""

# N = scored positions

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from preceptor_client.train.errors import TrainingStoppedError
from preceptor_client.train.learner.batches import micro_batches
from preceptor_client.train.learner.columns import StudentColumns, unmeasured
from preceptor_client.train.learner.config import OptimizerConfig
from preceptor_client.train.learner.loss import Loss
from preceptor_client.train.learner.measure import StudentMeasure
from preceptor_client.train.objective.context import StepContext
from preceptor_client.train.objective.reduction import Term
from preceptor_client.train.objective.shaping import ShapedStep, Shaping, StepTerms
from preceptor_client.train.student.student import Student
from preceptor_client.train.teacher.scored import ScoredEpisode


@dataclass(frozen=True, slots=True, kw_only=True)
class StepResult:
    """What one step did."""

    scored: list[ScoredEpisode]
    """The episodes of the step as the loss took them: with credit and strengths, where the run has them."""
    num_positions: int
    """Those with a score and a weight."""
    loss: float
    """What was minimised, before the update: nats per position, reduced as objective.reduction says, and the credit's
    loss on top where there is one. Of several tasks the mean, by their shares of the step's episodes."""
    credit_loss: float | None = None
    """The part of it that is the credit's, its coefficient included; None without credit."""
    columns: list[StudentColumns]
    """One entry per episode of the step, before the update."""
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
    """One entry per episode of the step."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskLoss:
    """What a task's episodes are turned into: terms, and their losses."""

    loss: Loss
    shaping: Shaping


class Learner:
    """Owns the optimizer."""

    def __init__(
        self,
        student: Student,
        *,
        config: OptimizerConfig,
        tasks: Mapping[str, TaskLoss],
        context: Callable[[int], StepContext],
    ) -> None:
        """`tasks` by their names, in the order in which a step's episodes come; `context` is what parts may know of a
        step."""
        self._config = config
        self._tasks = tasks
        self._context = context
        self._parameters = [parameter for parameter in student.module.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(
            self._parameters,
            lr=config.learning_rate,
            betas=config.betas,
            weight_decay=config.weight_decay,
            fused=True,
        )

    def step(self, scored: Sequence[ScoredEpisode], *, step: int) -> StepResult | None:
        """Moves the student toward what its teachers said. None where no position counts in any term: the step is
        skipped and the weights stay."""
        at = self._context(step)
        members = {name: [one for one in scored if one.task == name] for name in self._tasks}
        return self.apply(
            {name: self._tasks[name].shaping.shape(of_task, at) for name, of_task in members.items() if of_task},
            step=step,
        )

    def apply(self, shaped: Mapping[str, ShapedStep], *, step: int) -> StepResult | None:
        """The same with the terms of each task's loss at hand."""
        if all(one.terms.is_empty for one in shaped.values()):
            return None
        gradients = self.accumulate_gradients(shaped)
        return self._moved(gradients, shaped=list(shaped.values()), step=step)

    def accumulate_gradients(self, shaped: Mapping[str, ShapedStep]) -> Gradients:
        """Adds the gradient of the step's loss. Denominators are those of a whole task in the step: micro-batches do
        not change it."""
        total = sum(len(one.scored) for one in shaped.values())
        parts = [
            self._of_task(self._tasks[name].loss, one.scored, terms=one.terms, share=len(one.scored) / total)
            for name, one in shaped.items()
        ]
        credits = [part.credit_loss for part in parts if part.credit_loss is not None]
        return Gradients(
            loss=sum(part.loss for part in parts),
            credit_loss=sum(credits) if credits else None,
            columns=[column for part in parts for column in part.columns],
        )

    def _of_task(self, loss_of: Loss, scored: Sequence[ScoredEpisode], *, terms: StepTerms, share: float) -> Gradients:
        if terms.is_empty:
            return Gradients(
                loss=0.0, credit_loss=None, columns=[unmeasured(len(one.scores.positions_N)) for one in scored]
            )
        measure = StudentMeasure(scored, temperature=loss_of.temperature)
        loss, credit_loss = 0.0, 0.0
        for indices in micro_batches(scored, size=self._config.micro_batch_size):
            batch = loss_of.of([scored[index] for index in indices], dense_rows_M=measure.rows_of(indices))
            parts: list[torch.Tensor] = []
            if not terms.objective.is_empty:
                part, value = _reduced(batch.losses_N, terms.objective, indices, share=share)
                parts.append(part)
                loss += value
            if terms.credit is not None and not terms.credit.is_empty:
                assert batch.credit_losses_N is not None, "a term of credit, and episodes without"
                part, value = _reduced(batch.credit_losses_N, terms.credit, indices, share=share)
                parts.append(part)
                credit_loss += value
            torch.autograd.backward(sum(parts[1:], start=parts[0]))
            assert batch.dense_logits_MV is not None
            measure.add(indices, batch.dense_logits_MV, batch.losses_N.detach())
        return Gradients(
            loss=loss + credit_loss,
            credit_loss=None if terms.credit is None else credit_loss,
            columns=measure.finish(),
        )

    def _moved(self, gradients: Gradients, *, shaped: Sequence[ShapedStep], step: int) -> StepResult:
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
        return StepResult(
            scored=[one for of_task in shaped for one in of_task.scored],
            num_positions=sum(of_task.terms.num_positions for of_task in shaped),
            loss=loss,
            credit_loss=gradients.credit_loss,
            columns=gradients.columns,
            gradient_norm=norm,
            learning_rate=learning_rate,
        )

    def _learning_rate(self, step: int) -> float:
        if step >= self._config.warmup_steps:
            return self._config.learning_rate
        return self._config.learning_rate * step / self._config.warmup_steps


def _reduced(losses_N: torch.Tensor, term: Term, indices: Sequence[int], *, share: float) -> tuple[torch.Tensor, float]:
    """A batch's part of a term, to derive, and its value in float64."""
    weighted_N = losses_N * torch.from_numpy(term.of(indices)).to(losses_N)
    part, value = weighted_N.sum() / term.denominator, float(weighted_N.detach().double().sum()) / term.denominator
    return (part, value) if share == 1.0 else (part * share, value * share)
