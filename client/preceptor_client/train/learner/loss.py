"""The loss of scored episodes, position by position: one forward of the student, the objective, the policy gradient of
the credit. Moves no weights."""

# N = scored positions, K = width of the supports, M = positions that are measured, V = vocabulary

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from preceptor_client.objectives.policy_gradient import clipped_policy_gradient
from preceptor_client.objectives.positions import Positions
from preceptor_client.train.objective.checked import objective_for
from preceptor_client.train.objective.config import CreditConfig, ObjectiveConfig
from preceptor_client.train.objective.reference import Reference
from preceptor_client.train.objective.targets import Targets, targets_by_teacher, targets_of
from preceptor_client.train.student.module import TokenLogprobs, TokenQuery
from preceptor_client.train.student.student import Student
from preceptor_client.train.teacher.scored import ScoredEpisode


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class BatchLoss:
    """What one forward gave."""

    losses_N: torch.Tensor
    """The objective's: nats, with gradients. Where objective.coefficient is 0 they are only measured, and NaN at
    positions without a support."""
    credit_losses_N: torch.Tensor | None
    """The credit's, with gradients; None where the episodes have no credit."""
    dense_logits_MV: torch.Tensor | None
    """All logits at the rows that were asked for, before the temperature and without gradients."""


class Loss:
    """The objective of a task, for one student."""

    def __init__(
        self,
        student: Student,
        *,
        config: ObjectiveConfig,
        temperature: float,
        credit: CreditConfig | None = None,
        reference: Reference | None = None,
        by_teacher: bool = False,
    ) -> None:
        """`credit` says how the credit of episodes is clipped; `reference` is what `config.extrapolation` starts from,
        where it is not 1; `by_teacher` takes the weighted sum of the divergences to each teacher of an episode."""
        if config.needs_reference != (reference is not None):
            raise ValueError("objective.extrapolation other than 1 needs a reference, and 1 needs none")
        self.temperature = temperature
        self._student = student
        self._config = config
        self._credit = credit
        self._reference = reference
        self._by_teacher = by_teacher
        self._objective = objective_for(config)

    def of(self, batch: Sequence[ScoredEpisode], *, dense_rows_M: npt.NDArray[np.int64] | None = None) -> BatchLoss:
        """The losses of a micro-batch, in the order of its episodes; `dense_rows_M` are those of its positions whose
        logits are wanted whole."""
        targets = self._targets(batch)
        has_credit = any(one.advantages_N is not None for one in batch)
        first = targets[0]
        outputs = self._student.module(
            [one.sequence for one in batch],
            TokenQuery(
                ids_NK=torch.cat([one.ids_NK for one in targets], dim=1),
                sampled_ids_N=first.sampled_ids_N,
                temperature=self.temperature,
                needs_normaliser=self._objective.needs_normaliser or has_credit,
            ),
            then=lambda logprobs, rows: self._losses(logprobs, [one.rows(rows) for one in targets], has_credit),
            dense_rows_M=dense_rows_M,
        )
        values = outputs.values_N
        assert values is not None
        return BatchLoss(
            losses_N=values[:, 0] if has_credit else values,
            credit_losses_N=values[:, 1] if has_credit else None,
            dense_logits_MV=outputs.dense_logits_MV,
        )

    def _targets(self, batch: Sequence[ScoredEpisode]) -> list[Targets]:
        """One, or one for each teacher."""
        device = self._student.device
        targets = targets_by_teacher(batch, device=device) if self._by_teacher else [targets_of(batch, device=device)]
        if not self._reference:
            return targets
        return self._reference.extrapolated(targets, batch, strength=self._config.extrapolation)

    def _losses(self, student: TokenLogprobs, targets: Sequence[Targets], has_credit: bool) -> torch.Tensor:
        """[N]; with credit [N, 2], the objective's and the credit's."""
        is_normalised = self._objective.needs_normaliser or has_credit
        widths = [one.ids_NK.shape[1] for one in targets]
        losses = [
            self._objective_losses(_positions(logprobs_NK, student.sampled_logprobs_N, one, is_normalised))
            for logprobs_NK, one in zip(torch.split(student.logprobs_NK, widths, dim=1), targets, strict=True)
        ]
        if len(targets) > 1:
            losses = [one.share_N * losses_N for one, losses_N in zip(targets, losses, strict=True)]
        losses_N = sum(losses[1:], start=losses[0])
        if not has_credit:
            return losses_N
        credit_N = self._credit_losses(student.sampled_logprobs_N, targets[0])
        return torch.stack([losses_N.to(credit_N.dtype), credit_N], dim=1)

    def _objective_losses(self, at: Positions) -> torch.Tensor:
        if self._config.coefficient:
            return self._objective.loss(at)
        # It is only measured, where the support is large enough for it.
        has_support_N = (~at.teacher_logprobs_NK.isneginf()).sum(dim=1) >= self._objective.min_support
        losses_N = torch.full_like(at.old_logprobs_N, float("nan"))
        if has_support_N.any():
            losses_N[has_support_N] = self._objective.loss(_detached(at, has_support_N)).to(losses_N.dtype)
        return losses_N

    def _credit_losses(self, student_sampled_logprobs_N: torch.Tensor, targets: Targets) -> torch.Tensor:
        if self._credit is None:
            raise ValueError("the episodes have credit, and the loss was made without: give it `credit`")
        low, high = self._credit.clip_range, self._credit.clip_high
        return clipped_policy_gradient(
            student_sampled_logprobs_N,
            targets.old_logprobs_N,
            targets.advantage_N,
            clip_low=low,
            clip_high=low if high is None else high,
            dual_clip=self._credit.dual_clip,
        )


def _positions(
    logprobs_NK: torch.Tensor, sampled_logprobs_N: torch.Tensor, targets: Targets, is_normalised: bool
) -> Positions:
    """The student's logprobs beside one teacher's."""
    return Positions(
        student_logprobs_NK=logprobs_NK,
        teacher_logprobs_NK=targets.teacher_logprobs_NK,
        teacher_log_tail_N=targets.teacher_log_tail_N,
        is_normalised=is_normalised,
        student_sampled_logprobs_N=sampled_logprobs_N,
        teacher_sampled_logprobs_N=targets.teacher_sampled_logprobs_N,
        old_logprobs_N=targets.old_logprobs_N,
        is_sampled_inside_N=targets.is_sampled_inside_N,
        advantage_N=targets.advantage_N,
        turn_N=targets.turn_N,
    )


def _detached(at: Positions, is_kept_N: torch.Tensor) -> Positions:
    """Some of the positions, without gradients."""
    columns = {field.name: getattr(at, field.name) for field in fields(at)}
    kept: dict[str, Any] = {  # Any: all columns, but for the one field that is none
        name: one.detach()[is_kept_N] for name, one in columns.items() if torch.is_tensor(one)
    }
    return replace(at, **kept)
