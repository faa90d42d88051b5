"""The loss of scored rollouts, position by position: one forward of the student, the objective. Moves no weights."""

# N = scored positions, K = width of the supports, M = positions that are measured, V = vocabulary

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from preceptor_client.objectives import objective_for
from preceptor_client.objectives.positions import Positions
from preceptor_client.train.objective.config import ObjectiveConfig
from preceptor_client.train.objective.reference import Reference
from preceptor_client.train.objective.targets import Targets, targets_of
from preceptor_client.train.student.module import TokenLogprobs, TokenQuery
from preceptor_client.train.student.student import Student
from preceptor_client.train.teacher.scored import ScoredEpisode


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class BatchLoss:
    """What one forward gave."""

    losses_N: torch.Tensor
    """Nats, with gradients."""
    dense_logits_MV: torch.Tensor | None
    """All logits at the rows that were asked for, before the temperature and without gradients."""


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

    def of(self, batch: Sequence[ScoredEpisode], *, dense_rows_M: npt.NDArray[np.int64] | None = None) -> BatchLoss:
        """The losses of a micro-batch, in the order of its rollouts; `dense_rows_M` are those of its positions whose
        logits are wanted whole."""
        targets = targets_of(batch, config=self._config, device=self._student.device)
        if self._reference:
            targets = self._reference.extrapolated(targets, batch, strength=self._config.extrapolation)
        outputs = self._student.module(
            [one.sequence for one in batch],
            TokenQuery(
                ids_NK=targets.ids_NK,
                sampled_ids_N=targets.sampled_ids_N,
                temperature=self._temperature,
                needs_normaliser=self._objective.needs_normaliser,
            ),
            then=lambda logprobs, rows: self._losses(logprobs, targets.rows(rows)),
            dense_rows_M=dense_rows_M,
        )
        assert outputs.values_N is not None
        return BatchLoss(losses_N=outputs.values_N, dense_logits_MV=outputs.dense_logits_MV)

    def _losses(self, student: TokenLogprobs, targets: Targets) -> torch.Tensor:
        return self._objective.loss(
            Positions(
                student_logprobs_NK=student.logprobs_NK,
                teacher_logprobs_NK=targets.teacher_logprobs_NK,
                teacher_log_tail_N=targets.teacher_log_tail_N,
                is_normalised=self._objective.needs_normaliser,
                student_sampled_logprobs_N=student.sampled_logprobs_N,
                teacher_sampled_logprobs_N=targets.teacher_sampled_logprobs_N,
                old_logprobs_N=targets.old_logprobs_N,
                is_sampled_inside_N=targets.is_sampled_inside_N,
            )
        )
