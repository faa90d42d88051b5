"""The loss of scored rollouts, position by position: one forward of the student, the objective, the policy gradient of
the credit. Moves no weights."""

# N = scored positions, K = width of the supports, V = vocabulary, D = hidden size

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.utils.checkpoint import checkpoint

from preceptor_client.objectives.policy_gradient import clipped_policy_gradient
from preceptor_client.objectives.positions import Positions
from preceptor_client.train.learner.batches import hidden_states
from preceptor_client.train.objective.checked import objective_for
from preceptor_client.train.objective.config import CreditConfig, ObjectiveConfig
from preceptor_client.train.objective.reference import Reference
from preceptor_client.train.objective.targets import Targets, targets_of
from preceptor_client.train.student.student import Student
from preceptor_client.train.teacher.scored import ScoredEpisode

ENTRIES_AT_ONCE = 1 << 24
"""Entries of supports, N x K, whose gradients are kept; beyond them a part of the positions at a time is computed again
in the backward. Only full_vocabulary has as many."""


_Losses = tuple[torch.Tensor, torch.Tensor | None]
"""The objective's and the credit's."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class BatchLoss:
    """What one forward gave."""

    losses_N: torch.Tensor
    """The objective's: nats, with gradients. Where objective.coefficient is 0 they are only measured, and NaN at
    positions without a support."""
    credit_losses_N: torch.Tensor | None
    """The credit's, with gradients; None where the rollouts have no credit."""
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
        credit: CreditConfig | None = None,
        reference: Reference | None = None,
    ) -> None:
        """`credit` says how the credit of rollouts is clipped, where they have any; `reference` is what the settings of
        the extrapolation start from, where there is one."""
        if config.needs_reference != (reference is not None):
            raise ValueError("objective.extrapolation other than 1 needs a reference, and 1 needs none")
        self._student = student
        self._config = config
        self._temperature = temperature
        self._credit = credit
        self._reference = reference
        self._objective = objective_for(config)

    def of(self, batch: Sequence[ScoredEpisode]) -> BatchLoss:
        """The losses of a micro-batch, in the order of its rollouts."""
        hidden_ND = hidden_states(self._student, batch)
        targets = targets_of(batch, device=hidden_ND.device)
        if self._reference:
            targets = self._reference.extrapolated(targets, batch, strength=self._config.extrapolation)
        has_credit = any(one.advantages_N is not None for one in batch)
        losses_N, credit_losses_N = self._in_parts(hidden_ND, targets, has_credit=has_credit)
        return BatchLoss(losses_N=losses_N, credit_losses_N=credit_losses_N, hidden_ND=hidden_ND.detach())

    def _in_parts(self, hidden_ND: torch.Tensor, targets: Targets, *, has_credit: bool) -> _Losses:
        size = max(1, ENTRIES_AT_ONCE // targets.ids_NK.shape[1])
        if len(hidden_ND) <= size:
            return self._losses(hidden_ND, targets, has_credit)
        slices = [slice(start, start + size) for start in range(0, len(hidden_ND), size)]
        parts = [
            checkpoint(self._losses, hidden_ND[part], targets.rows(part), has_credit, use_reentrant=False)
            for part in slices
        ]
        credit = [credit_N for _, credit_N in parts if credit_N is not None]
        return torch.cat([losses_N for losses_N, _ in parts]), torch.cat(credit) if credit else None

    def _losses(self, hidden_ND: torch.Tensor, targets: Targets, has_credit: bool) -> _Losses:
        ids = torch.cat([targets.ids_NK, targets.sampled_ids_N[:, None]], dim=1)
        logprobs = self._student.head.logits_at(hidden_ND, ids) / self._temperature
        is_normalised = self._objective.needs_normaliser or has_credit
        if is_normalised:
            log_z_N = self._student.head.log_partition(hidden_ND, temperature=self._temperature)
            logprobs = logprobs - log_z_N[:, None]
        credit_N = self._credit_losses(logprobs[:, -1], targets) if has_credit else None
        if self._config.coefficient == 0:
            return self._measured(logprobs.detach(), targets, is_normalised=is_normalised), credit_N
        return self._objective.loss(_positions(logprobs, targets, is_normalised=is_normalised)), credit_N

    def _credit_losses(self, student_sampled_logprobs_N: torch.Tensor, targets: Targets) -> torch.Tensor:
        if self._credit is None:
            raise ValueError("the rollouts have credit, and the loss was made without: give it `credit`")
        low, high = self._credit.clip_range, self._credit.clip_high
        return clipped_policy_gradient(
            student_sampled_logprobs_N,
            targets.old_logprobs_N,
            targets.advantage_N,
            clip_low=low,
            clip_high=low if high is None else high,
            dual_clip=self._credit.dual_clip,
        )

    def _measured(self, logprobs: torch.Tensor, targets: Targets, *, is_normalised: bool) -> torch.Tensor:
        """The objective where the support is large enough for it, NaN elsewhere; without gradients."""
        has_support_N = (~targets.teacher_logprobs_NK.isneginf()).sum(dim=1) >= self._objective.min_support
        losses_N = torch.full_like(targets.old_logprobs_N, float("nan"))
        if has_support_N.any():
            at = _positions(logprobs[has_support_N], targets.rows(has_support_N), is_normalised=is_normalised)
            losses_N[has_support_N] = self._objective.loss(at).to(losses_N.dtype)
        return losses_N


def _positions(logprobs: torch.Tensor, targets: Targets, *, is_normalised: bool) -> Positions:
    """`logprobs` are the student's at the supports and, in the last column, of the sampled token."""
    return Positions(
        student_logprobs_NK=logprobs[:, :-1],
        teacher_logprobs_NK=targets.teacher_logprobs_NK,
        teacher_log_tail_N=targets.teacher_log_tail_N,
        is_normalised=is_normalised,
        student_sampled_logprobs_N=logprobs[:, -1],
        teacher_sampled_logprobs_N=targets.teacher_sampled_logprobs_N,
        old_logprobs_N=targets.old_logprobs_N,
        is_sampled_inside_N=targets.is_sampled_inside_N,
        advantage_N=targets.advantage_N,
        turn_N=targets.turn_N,
    )
