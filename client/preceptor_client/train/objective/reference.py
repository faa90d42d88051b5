"""Extrapolation beyond the teacher, away from where the student started: arXiv 2602.12125 (ExOPD).

    log target = log q + (lambda - 1) (log q - log start), up to the target's normaliser

so that lambda = 1 is the teacher. The target is known up to a constant per position: objectives that renormalise inside
the support, or that compare single tokens, can use it.
"""

# N = scored positions, K = width of the supports

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from preceptor_client.train.objective.targets import Targets
from preceptor_client.train.student.module import TokenQuery
from preceptor_client.train.student.student import Student
from preceptor_client.train.teacher.scored import ScoredEpisode


class Reference:
    """The untrained student, frozen."""

    def __init__(self, start: Student, *, temperature: float) -> None:
        self._start = start
        self._temperature = temperature

    @torch.no_grad()
    def extrapolated(
        self, targets: Sequence[Targets], batch: Sequence[ScoredEpisode], *, strength: float
    ) -> list[Targets]:
        """The same with the target's logprobs in place of the teacher's, for each teacher of a batch, by one forward.
        `strength` is lambda, where the episodes have none of their own for each position."""
        query = TokenQuery(
            ids_NK=torch.cat([one.ids_NK for one in targets], dim=1),
            sampled_ids_N=targets[0].sampled_ids_N,
            temperature=self._temperature,
            needs_normaliser=True,
        )
        start = self._start.module([one.sequence for one in batch], query).tokens
        assert start is not None
        sampled_N1 = start.sampled_logprobs_N[:, None]
        supports = torch.split(start.logprobs_NK, [one.ids_NK.shape[1] for one in targets], dim=1)
        return [
            _beyond(one, torch.cat([logprobs_NK, sampled_N1], dim=1), batch, strength=strength)
            for one, logprobs_NK in zip(targets, supports, strict=True)
        ]


def _beyond(targets: Targets, start: torch.Tensor, batch: Sequence[ScoredEpisode], *, strength: float) -> Targets:
    """One teacher's; `start` are the untrained student's logprobs, [N, K + 1], those of the sampled tokens last."""
    teacher = torch.cat([targets.teacher_logprobs_NK, targets.teacher_sampled_logprobs_N[:, None]], dim=1)
    strength_N1 = _strengths(batch, like=teacher)
    lambdas = strength if strength_N1 is None else strength_N1
    target = lambdas * teacher - (lambdas - 1) * start
    return replace(targets, teacher_logprobs_NK=target[:, :-1], teacher_sampled_logprobs_N=target[:, -1])


def _strengths(batch: Sequence[ScoredEpisode], *, like: torch.Tensor) -> torch.Tensor | None:
    """Those of the episodes, [N, 1]; None where they have none."""
    given = [one.strengths_N for one in batch if one.strengths_N is not None]
    if not given:
        return None
    assert len(given) == len(batch), "episodes with strengths of their own beside others without"
    return torch.from_numpy(np.concatenate(given)).to(like)[:, None]
