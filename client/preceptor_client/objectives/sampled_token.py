"""The baseline: a policy gradient on the one token that the student wrote, clipped as PPO's is."""

# N = positions

from __future__ import annotations

import torch

from preceptor_client.objectives.checks import check_column, check_student_column
from preceptor_client.objectives.floors import floored_teacher, loss_dtype

LOG_RATIO_BOUND = 20.0
"""Nats. Beyond it the exponential of the log ratio would overflow, long after the clips have taken its gradient; the
bound of verl's `compute_policy_loss`."""


def sampled_token(
    student_logprobs_N: torch.Tensor,
    teacher_logprobs_N: torch.Tensor,
    old_logprobs_N: torch.Tensor,
    *,
    clip_range: float,
    dual_clip: float,
) -> torch.Tensor:
    """PPO on the sampled token, its advantage being how much likelier the teacher finds it; shape N, not a divergence.

        A = sg(log q(y) - log old(y)),  r = p(y) / old(y),  clip(r) = r kept within [1 - clip_range, 1 + clip_range]
        loss = -min(r A, clip(r) A),  and where A < 0 at most -dual_clip A

    arXiv 2603.25562, Eq. 2 and 5, and its code: vanilla PPO with clip 0.2 and dual clip (arXiv 1912.09729) 3.0. Where
    old is the student itself the expected gradient over y is that of the reverse KL over the vocabulary. log q(y) is at
    least -100 nats, so a token that the teacher cannot write has a finite, if large, cost. Raises ValueError for shapes
    other than [N], NaN from the teacher, and an old logprob that is not finite.
    """
    check_student_column(student_logprobs_N)
    check_column("teacher sampled logprobs", teacher_logprobs_N, num_positions=len(student_logprobs_N))
    check_column("old logprobs", old_logprobs_N, num_positions=len(student_logprobs_N))
    if not old_logprobs_N.isfinite().all():
        raise ValueError("an old logprob is not finite: the student cannot have written that token")

    dtype = loss_dtype(student_logprobs_N, teacher_logprobs_N, old_logprobs_N)
    old_N = old_logprobs_N.detach().to(dtype)
    advantage_N = floored_teacher(teacher_logprobs_N.detach().to(dtype)) - old_N
    log_ratio_N = student_logprobs_N.to(dtype) - old_N
    ratio_N = log_ratio_N.clamp(-LOG_RATIO_BOUND, LOG_RATIO_BOUND).exp()
    clipped_N = ratio_N.clamp(1 - clip_range, 1 + clip_range)
    gain_N = torch.minimum(ratio_N * advantage_N, clipped_N * advantage_N)
    bounded_N = torch.maximum(gain_N, dual_clip * advantage_N)
    return -torch.where(advantage_N < 0, bounded_N, gain_N)
