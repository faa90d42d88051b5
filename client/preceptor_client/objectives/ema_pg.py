"""The reverse KL over the vocabulary, exact inside the support and estimated from the sampled token outside it."""

# N = positions, K = support size

from __future__ import annotations

import torch

from preceptor_client.objectives.checks import check_column, check_length, check_old
from preceptor_client.objectives.floors import floored_student, floored_teacher, loss_dtype
from preceptor_client.objectives.objective import Objective
from preceptor_client.objectives.positions import Positions
from preceptor_client.objectives.truncated import truncated

MAX_IMPORTANCE = 2.0
"""Upper bound of the weight of a sampled token, p(y) / old(y). Truncated importance sampling (arXiv 2603.25562 leaves
the bound open); 2 is the upper end of the range that Nemotron-Cascade 2 gives."""


def ema_pg(
    student_logprobs_NK: torch.Tensor,
    teacher_logprobs_NK: torch.Tensor,
    student_sampled_logprobs_N: torch.Tensor,
    teacher_sampled_logprobs_N: torch.Tensor,
    old_logprobs_N: torch.Tensor,
    is_sampled_inside_N: torch.Tensor,
) -> torch.Tensor:
    """Reverse KL's terms of S, plus those outside through the sampled token y; nats, shape N, may be negative.

        head = sum over k in S of p_k (log p_k - log q_k)
        tail = [y not in S] * s * (r * sg(log p(y) - log q(y)) + r - 1),  r = p(y) / sg(p(y))
        s = sg(min(p(y) / old(y), 2))

    arXiv 2602.04417 (EMA-PG), with one term more. As published, the tail is [y not in S] * s * r * sg(log p - log q),
    and its expected gradient is that of the full reverse KL plus grad p(S): the head is differentiated as a sum, where
    p log p gives 1 + log p, the tail as a policy gradient, where the 1 is missing, and it no longer adds up to nothing
    when only part of the vocabulary has it. r - 1 is 0 in value and brings it back. With it, for y drawn from old and
    p(y) / old(y) below the bound, value and gradient are those of the full reverse KL in expectation. log q(y) is at
    least -100 nats. Raises ValueError as `classes.inside_only` does, for columns that are not [N], NaN in the teacher's
    or the old ones, and an old logprob that is not finite.
    """
    head_N = truncated(student_logprobs_NK, teacher_logprobs_NK)
    check_length("student sampled logprobs", student_sampled_logprobs_N, num_positions=len(head_N))
    check_column("teacher sampled logprobs", teacher_sampled_logprobs_N, num_positions=len(head_N))
    check_old(old_logprobs_N, num_positions=len(head_N))
    check_column("is_sampled_inside", is_sampled_inside_N, num_positions=len(head_N))

    dtype = loss_dtype(head_N, student_sampled_logprobs_N, teacher_sampled_logprobs_N)
    log_p_N = floored_student(student_sampled_logprobs_N.to(dtype))
    log_q_N = floored_teacher(teacher_sampled_logprobs_N.to(dtype))
    constant_N = log_p_N.detach()
    ratio_N = (log_p_N - constant_N).exp()
    importance_N = (constant_N - old_logprobs_N.detach()).exp().clamp(max=MAX_IMPORTANCE)
    tail_N = importance_N * (ratio_N * (constant_N - log_q_N) + ratio_N - 1)
    return head_N + tail_N.masked_fill(is_sampled_inside_N, 0.0)


class EmaPg(Objective):
    """`ema_pg`. The sampled term is for tokens outside the support."""

    __slots__ = ()

    takes_sampled = False
    is_estimate = True

    def loss(self, at: Positions) -> torch.Tensor:
        return ema_pg(
            at.student_logprobs_NK,
            at.teacher_logprobs_NK,
            at.student_sampled_logprobs_N,
            at.teacher_sampled_logprobs_N,
            at.old_logprobs_N,
            at.is_sampled_inside_N,
        )
