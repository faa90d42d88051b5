"""One optimizer step from scored rollouts: forward, loss, backward, clip, AdamW. Knows nothing of sampling or I/O."""

# N = scored positions, K = support size

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from preceptor_client.train.config import OptimizerConfig
from preceptor_client.train.errors import TrainingStoppedError
from preceptor_client.train.head import log_partition, support_logits
from preceptor_client.train.hidden import ScoredSequence, scored_hidden_states
from preceptor_client.train.objective.lsm import lsm
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
        eligible = [one for one in scored if len(one.scores.positions_N)]
        num_positions = sum(len(one.scores.positions_N) for one in eligible)
        if not num_positions:
            return None
        # Alike lengths side by side waste the least padding; the sort is stable, so a resumed run sees the same.
        eligible.sort(key=lambda one: len(one.rollout.prompt_ids) + len(one.rollout.response_ids))
        loss_sum = mass_sum = 0.0
        size = self._config.micro_batch_size
        for start in range(0, len(eligible), size):
            loss_N, mass_N = self._losses(eligible[start : start + size])
            torch.autograd.backward(loss_N.sum() / num_positions)
            loss_sum += float(loss_N.detach().double().sum())
            mass_sum += float(mass_N.double().sum())
        return num_positions, loss_sum / num_positions, mass_sum / num_positions

    def _losses(self, scored: Sequence[ScoredRollout]) -> tuple[torch.Tensor, torch.Tensor]:
        """Loss and student mass of every scored position, shape [N] each. `positions_N` of the scores already excludes
        prompt, padding, masked and failed positions; nothing here re-derives it."""
        device = self._student.device
        sequences = [
            ScoredSequence(
                prompt_ids=one.rollout.prompt_ids,
                response_ids=one.rollout.response_ids,
                positions_N=one.scores.positions_N,
            )
            for one in scored
        ]
        ids_NK = torch.from_numpy(np.concatenate([one.scores.support_ids_NK for one in scored])).to(device)
        teacher_NK = torch.from_numpy(np.concatenate([one.scores.support_logprobs_NK for one in scored])).to(device)
        hidden_ND = scored_hidden_states(self._student, sequences)
        logits_NK = support_logits(hidden_ND, self._student.head, ids_NK)
        loss_N = lsm(logits_NK, teacher_NK, temperature=self._temperature)
        with torch.no_grad():
            log_z_N = log_partition(hidden_ND, self._student.head, temperature=self._temperature)
            # An entry of -inf is outside the support.
            inside_NK = (logits_NK.float() / self._temperature).masked_fill(teacher_NK.isneginf(), float("-inf"))
            mass_N = torch.exp(inside_NK.logsumexp(dim=1) - log_z_N).clamp(max=1.0)
        return loss_N, mass_N

    def _learning_rate(self, step: int) -> float:
        if step >= self._config.warmup_steps:
            return self._config.learning_rate
        return self._config.learning_rate * step / self._config.warmup_steps
