"""The loss of scored rollouts, position by position: one forward of the student, the objective. Moves no weights."""

# N = scored positions, K = width of the supports, V = vocabulary, D = hidden size

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.utils.checkpoint import checkpoint

from preceptor_client.objectives import objective_for
from preceptor_client.objectives.positions import Positions
from preceptor_client.train.learner.batches import hidden_states
from preceptor_client.train.objective.config import ObjectiveConfig
from preceptor_client.train.objective.reference import Reference
from preceptor_client.train.objective.targets import Targets, targets_of
from preceptor_client.train.student.student import Student
from preceptor_client.train.teacher.scored import ScoredEpisode

ENTRIES_AT_ONCE = 1 << 24
"""Entries of supports, N x K, whose gradients are kept; beyond them a part of the positions at a time is computed again
in the backward. Only full_vocabulary has as many."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class BatchLoss:
    """What one forward gave."""

    losses_N: torch.Tensor
    """Nats, with gradients."""
    hidden_ND: torch.Tensor
    """Without gradients."""


class Loss:
    """The objective of a run, for one student."""

    def __init__(
        self,
        student: Student,
        *,
        config: ObjectiveConfig,
        temperature: float,
        reference: Reference | None = None,
    ) -> None:
        """`reference` is what `config.extrapolation` starts from, where it is not 1."""
        if (config.extrapolation != 1.0) != (reference is not None):
            raise ValueError("objective.extrapolation other than 1 needs a reference, and 1 needs none")
        self._student = student
        self._config = config
        self._temperature = temperature
        self._reference = reference
        self._objective = objective_for(config)

    def of(self, batch: Sequence[ScoredEpisode]) -> BatchLoss:
        """The losses of a micro-batch, in the order of its rollouts."""
        hidden_ND = hidden_states(self._student, batch)
        targets = targets_of(batch, config=self._config, device=hidden_ND.device)
        if self._reference:
            targets = self._reference.extrapolated(targets, batch, strength=self._config.extrapolation)
        return BatchLoss(losses_N=self._in_parts(hidden_ND, targets), hidden_ND=hidden_ND.detach())

    def _in_parts(self, hidden_ND: torch.Tensor, targets: Targets) -> torch.Tensor:
        size = max(1, ENTRIES_AT_ONCE // targets.ids_NK.shape[1])
        if len(hidden_ND) <= size:
            return self._losses(hidden_ND, targets)
        parts = [slice(start, start + size) for start in range(0, len(hidden_ND), size)]
        return torch.cat(
            [checkpoint(self._losses, hidden_ND[part], targets.rows(part), use_reentrant=False) for part in parts]
        )

    def _losses(self, hidden_ND: torch.Tensor, targets: Targets) -> torch.Tensor:
        ids = torch.cat([targets.ids_NK, targets.sampled_ids_N[:, None]], dim=1)
        logprobs = self._student.head.logits_at(hidden_ND, ids) / self._temperature
        if self._objective.needs_normaliser:
            log_z_N = self._student.head.log_partition(hidden_ND, temperature=self._temperature)
            logprobs = logprobs - log_z_N[:, None]
        return self._objective.loss(
            Positions(
                student_logprobs_NK=logprobs[:, :-1],
                teacher_logprobs_NK=targets.teacher_logprobs_NK,
                teacher_log_tail_N=targets.teacher_log_tail_N,
                is_normalised=self._objective.needs_normaliser,
                student_sampled_logprobs_N=logprobs[:, -1],
                teacher_sampled_logprobs_N=targets.teacher_sampled_logprobs_N,
                old_logprobs_N=targets.old_logprobs_N,
                is_sampled_inside_N=targets.is_sampled_inside_N,
            )
        )
