"""Losses, one module per idea: tensors in, one loss per position out. They know nothing of batches or of teachers.

`objective_for` makes the one that the settings name, with its options bound.
"""

# N = positions, K = support size

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from preceptor_client.objectives.ema_pg import ema_pg
from preceptor_client.objectives.forward import forward
from preceptor_client.objectives.full_vocabulary import full_vocabulary
from preceptor_client.objectives.generalised_kl import generalised_kl
from preceptor_client.objectives.jsd import jsd
from preceptor_client.objectives.lsm import lsm
from preceptor_client.objectives.positions import Positions
from preceptor_client.objectives.sampled_token import sampled_token
from preceptor_client.objectives.stop_gradient import stop_gradient
from preceptor_client.objectives.tail_bucket import tail_bucket
from preceptor_client.objectives.truncated import truncated
from preceptor_client.train.objective.config import ObjectiveConfig, ObjectiveKind

PositionLoss = Callable[[Positions], torch.Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class Objective:
    """A loss with its options bound."""

    name: ObjectiveKind
    needs_normaliser: bool
    """Whether `Positions.is_normalised` must hold."""
    loss: PositionLoss
    """Loss of every position, nats, shape [N]. Raises ValueError for positions that the formula does not fit."""


def objective_for(config: ObjectiveConfig) -> Objective:
    """The objective of `config.kind`. Its loss refuses student logprobs without the normaliser that it needs."""
    formula = _formula_of(config)

    def loss(positions: Positions) -> torch.Tensor:
        if config.needs_normaliser and not positions.is_normalised:
            raise ValueError(
                f"objective.kind={config.kind} needs student logprobs over the whole vocabulary, these are up to a "
                f"constant per position: subtract the log partition first"
            )
        return formula(positions)

    return Objective(name=config.kind, needs_normaliser=config.needs_normaliser, loss=loss)


def _formula_of(config: ObjectiveConfig) -> PositionLoss:
    formulas: dict[ObjectiveKind, PositionLoss] = {
        "lsm": lambda at: lsm(at.student_logprobs_NK, at.teacher_logprobs_NK),
        "tail_bucket": lambda at: tail_bucket(at.student_logprobs_NK, at.teacher_logprobs_NK, at.teacher_log_tail_N),
        "generalised_kl": lambda at: generalised_kl(at.student_logprobs_NK, at.teacher_logprobs_NK),
        "truncated": lambda at: truncated(at.student_logprobs_NK, at.teacher_logprobs_NK),
        "full_vocabulary": lambda at: full_vocabulary(at.student_logprobs_NK, at.teacher_logprobs_NK),
        "forward": lambda at: forward(
            at.student_logprobs_NK, at.teacher_logprobs_NK, at.teacher_log_tail_N, outside=config.outside
        ),
        "jsd": lambda at: jsd(
            at.student_logprobs_NK,
            at.teacher_logprobs_NK,
            at.teacher_log_tail_N,
            beta=config.jsd_beta,
            outside=config.outside,
        ),
        "stop_gradient": lambda at: stop_gradient(at.student_logprobs_NK, at.teacher_logprobs_NK),
        "sampled_token": lambda at: sampled_token(
            at.student_sampled_logprobs_N,
            at.teacher_sampled_logprobs_N,
            at.old_logprobs_N,
            clip_range=config.clip_range,
            dual_clip=config.dual_clip,
        ),
        "ema_pg": lambda at: ema_pg(
            at.student_logprobs_NK,
            at.teacher_logprobs_NK,
            at.student_sampled_logprobs_N,
            at.teacher_sampled_logprobs_N,
            at.old_logprobs_N,
            at.is_sampled_inside_N,
        ),
    }
    return formulas[config.kind]
