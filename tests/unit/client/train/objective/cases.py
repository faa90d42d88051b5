"""Positions cut out of dense distributions, and the settings of every objective, for the tests of this folder."""

# N = positions, K = support size, V = vocabulary

from __future__ import annotations

import torch
from preceptor_client.objectives.positions import Positions
from preceptor_client.train.objective.checked import CheckedObjective, objective_for
from preceptor_client.train.objective.config import ObjectiveConfig

CONFIGS: dict[str, ObjectiveConfig] = {
    "lsm": ObjectiveConfig(kind="lsm"),
    "tail_bucket": ObjectiveConfig(kind="tail_bucket"),
    "generalised_kl": ObjectiveConfig(kind="generalised_kl"),
    "truncated": ObjectiveConfig(kind="truncated"),
    "full_vocabulary": ObjectiveConfig(kind="full_vocabulary"),
    "forward, renormalise": ObjectiveConfig(kind="forward", options={"outside": "renormalise"}),
    "forward, tail_bucket": ObjectiveConfig(kind="forward", options={"outside": "tail_bucket"}),
    "forward, truncate": ObjectiveConfig(kind="forward", options={"outside": "truncate"}),
    "jsd, renormalise": ObjectiveConfig(kind="jsd", options={"outside": "renormalise", "beta": 0.25}),
    "jsd, tail_bucket": ObjectiveConfig(kind="jsd", options={"outside": "tail_bucket"}),
    "jsd, truncate": ObjectiveConfig(kind="jsd", options={"outside": "truncate", "beta": 0.25}),
    "stop_gradient": ObjectiveConfig(kind="stop_gradient"),
    "sampled_token": ObjectiveConfig(kind="sampled_token"),
    "ema_pg": ObjectiveConfig(kind="ema_pg"),
}
OVER_A_SUPPORT = [name for name in CONFIGS if name != "sampled_token"]
DIFFERENTIABLE = [name for name in OVER_A_SUPPORT if name not in ("stop_gradient", "ema_pg")]
"""Their gradient is the gradient of their value; the others hold parts of it constant."""


def objective(name: str) -> CheckedObjective:
    return objective_for(CONFIGS[name])


def random_pair(num_rows: int, size: int, *, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Student logits and teacher logprobs, [N, V] in float64."""
    generator = torch.Generator().manual_seed(seed)
    student_NV = torch.randn(num_rows, size, generator=generator, dtype=torch.float64) * 2
    teacher_NV = torch.randn(num_rows, size, generator=generator, dtype=torch.float64) * 2
    return student_NV, torch.log_softmax(teacher_NV, dim=1)


def positions_of(
    student_logits_NV: torch.Tensor,
    teacher_logprobs_NV: torch.Tensor,
    *,
    ids_NK: torch.Tensor,
    sampled_N: torch.Tensor | None = None,
    old_logprobs_N: torch.Tensor | None = None,
) -> Positions:
    """What the trainer would hand over: gathered at `ids_NK`. The sampled token is the last of the vocabulary, and the
    old student the student itself, unless said otherwise."""
    if sampled_N is None:
        sampled_N = torch.full((len(ids_NK),), student_logits_NV.shape[1] - 1)
    student_NV = torch.log_softmax(student_logits_NV, dim=1)
    inside_NV = torch.zeros_like(teacher_logprobs_NV, dtype=torch.bool).scatter_(1, ids_NK, True)
    student_sampled_N = student_NV.gather(1, sampled_N[:, None])[:, 0]
    return Positions(
        student_logprobs_NK=student_NV.gather(1, ids_NK),
        teacher_logprobs_NK=teacher_logprobs_NV.gather(1, ids_NK),
        teacher_log_tail_N=teacher_logprobs_NV.masked_fill(inside_NV, float("-inf")).logsumexp(dim=1),
        is_normalised=True,
        student_sampled_logprobs_N=student_sampled_N,
        teacher_sampled_logprobs_N=teacher_logprobs_NV.gather(1, sampled_N[:, None])[:, 0],
        old_logprobs_N=student_sampled_N.detach() if old_logprobs_N is None else old_logprobs_N,
        is_sampled_inside_N=inside_NV.gather(1, sampled_N[:, None])[:, 0],
        advantage_N=torch.zeros(len(ids_NK)),
        turn_N=torch.zeros(len(ids_NK), dtype=torch.int64),
    )


def dense_reverse_kl(student_logits_NV: torch.Tensor, teacher_logprobs_NV: torch.Tensor) -> torch.Tensor:
    """The oracle: torch's own divergence."""
    p = torch.distributions.Categorical(logits=student_logits_NV)
    q = torch.distributions.Categorical(logits=teacher_logprobs_NV)
    return torch.distributions.kl_divergence(p, q)
