"""PPO's clipped policy gradient on the token that the student wrote, for any advantage. Computes no advantage."""

# N = positions

from __future__ import annotations

import torch

from preceptor_client.objectives.checks import check_column, check_old, check_student_column
from preceptor_client.objectives.floors import loss_dtype

LOG_RATIO_BOUND = 20.0
"""Nats. Beyond it the exponential of the log ratio would overflow, long after the clips have taken its gradient; the
bound of verl's `compute_policy_loss`."""


def clipped_policy_gradient(
    student_logprobs_N: torch.Tensor,
    old_logprobs_N: torch.Tensor,
    advantage_N: torch.Tensor,
    *,
    clip_low: float,
    clip_high: float,
    dual_clip: float | None,
) -> torch.Tensor:
    """Loss whose gradient makes tokens with a positive advantage A likelier; shape N, not a divergence.

        r = p(y) / old(y),  clip(r) = r kept within [1 - clip_low, 1 + clip_high]
        loss = -min(r A, clip(r) A),  and where A < 0 at most -dual_clip A

    arXiv 1707.06347 (PPO), Eq. 7; a clip_high of its own is arXiv 2503.14476 (DAPO), section 3.1; the dual clip
    is arXiv 1912.09729, and None leaves it out. A is held constant. Raises ValueError for shapes other than [N],
    an advantage or an old logprob that is not finite.
    """
    check_student_column(student_logprobs_N)
    check_old(old_logprobs_N, num_positions=len(student_logprobs_N))
    check_column("advantages", advantage_N, num_positions=len(student_logprobs_N))
    if not advantage_N.isfinite().all():
        raise ValueError("an advantage is not finite: it must be a number")

    dtype = loss_dtype(student_logprobs_N, old_logprobs_N, advantage_N)
    constant_N = advantage_N.detach().to(dtype)
    log_ratio_N = student_logprobs_N.to(dtype) - old_logprobs_N.detach().to(dtype)
    ratio_N = log_ratio_N.clamp(-LOG_RATIO_BOUND, LOG_RATIO_BOUND).exp()
    clipped_N = ratio_N.clamp(1 - clip_low, 1 + clip_high)
    gain_N = torch.minimum(ratio_N * constant_N, clipped_N * constant_N)
    if dual_clip is None:
        return -gain_N
    bounded_N = torch.maximum(gain_N, dual_clip * constant_N)
    return -torch.where(constant_N < 0, bounded_N, gain_N)
