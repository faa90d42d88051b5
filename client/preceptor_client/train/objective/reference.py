"""Extrapolation beyond the teacher, away from where the student started: arXiv 2602.12125 (ExOPD).

    log target = log q + (lambda - 1) (log q - log start), up to the target's normaliser

so that lambda = 1 is the teacher. The target is known up to a constant per position: objectives that renormalise inside
the support, or that compare single tokens, can use it.
"""

# N = scored positions, K = width of the supports

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

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
    def extrapolated(self, targets: Targets, batch: Sequence[ScoredEpisode], *, strength: float) -> Targets:
        """The same with the target's logprobs in place of the teacher's; `strength` is lambda."""
        query = TokenQuery(
            ids_NK=targets.ids_NK,
            sampled_ids_N=targets.sampled_ids_N,
            temperature=self._temperature,
            needs_normaliser=True,
        )
        start = self._start.module([one.sequence for one in batch], query).tokens
        assert start is not None
        return replace(
            targets,
            teacher_logprobs_NK=strength * targets.teacher_logprobs_NK - (strength - 1) * start.logprobs_NK,
            teacher_sampled_logprobs_N=(
                strength * targets.teacher_sampled_logprobs_N - (strength - 1) * start.sampled_logprobs_N
            ),
        )
