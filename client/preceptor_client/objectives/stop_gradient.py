"""A policy gradient over the support instead of a divergence: each token weighed by its signal, weights constant."""

# N = positions, K = support size

from __future__ import annotations

import torch

from preceptor_client.objectives.classes import inside_only
from preceptor_client.objectives.objective import Objective
from preceptor_client.objectives.positions import Positions


def stop_gradient(student_logprobs_NK: torch.Tensor, teacher_logprobs_NK: torch.Tensor) -> torch.Tensor:
    """Policy gradient over S with the log ratio as cost and constant weights; nats, shape N, may be negative.

        w_k = sg(p_k / sum over S of p) * sg(log p_k - log q_k)
        value = sum over k in S of w_k,  gradient = sum over k in S of w_k grad log p_k

    arXiv 2604.13016 (Rethinking OPD) and its code: weights renormalised inside S, the log ratio not. Theirs is PPO per
    token of the support; this is that at a ratio of 1, the first step after a rollout. The gradient is not the
    gradient of the value. Student logprobs are over the whole vocabulary. Raises ValueError as `classes.inside_only`
    does.
    """
    classes = inside_only(student_logprobs_NK, teacher_logprobs_NK)
    outside_NK = classes.teacher_logprobs_NC.isneginf()
    log_p_NK = classes.student_logprobs_NC.masked_fill(outside_NK, 0.0)
    log_q_NK = classes.teacher_logprobs_NC.masked_fill(outside_NK, 0.0)
    share_NK = torch.softmax(classes.student_logprobs_NC, dim=1)
    weight_NK = (share_NK * (log_p_NK - log_q_NK)).detach()
    return (weight_NK * (1 + log_p_NK - log_p_NK.detach())).sum(dim=1)


class StopGradient(Objective):
    """`stop_gradient`."""

    __slots__ = ()

    def loss(self, at: Positions) -> torch.Tensor:
        return stop_gradient(at.student_logprobs_NK, at.teacher_logprobs_NK)
