"""The reverse KL over the support and one more class that holds everything else, so that mass outside has a price."""

# N = positions, K = support size

from __future__ import annotations

import torch

from preceptor_client.objectives.classes import with_tail
from preceptor_client.objectives.divergences import reverse_kl
from preceptor_client.objectives.objective import Objective
from preceptor_client.objectives.positions import Positions


def tail_bucket(
    student_logprobs_NK: torch.Tensor, teacher_logprobs_NK: torch.Tensor, teacher_log_tail_N: torch.Tensor
) -> torch.Tensor:
    """Reverse KL of student to teacher over K + 1 classes: the K tokens S, and all others together; nats, shape N.

        P = 1 - sum over S of p_k,  Q = exp(teacher log tail)
        loss = sum over k in S of p_k (log p_k - log q_k) + P (log P - log Q)

    Zero exactly where the student agrees on S, and so on the mass of S too; a lower bound of the dense reverse KL, and
    equal to it where S is the vocabulary. The forward form is TRL's (`_add_tail_bucket`). Student
    logprobs are over the whole vocabulary. A teacher tail below the smallest normal fp32, -inf too, counts as that
    (log: -87.3), and so does the student's, without gradient. Raises ValueError as `classes.with_tail` does.
    """
    return reverse_kl(with_tail(student_logprobs_NK, teacher_logprobs_NK, teacher_log_tail_N))


class TailBucket(Objective):
    """`tail_bucket`."""

    __slots__ = ()

    def loss(self, at: Positions) -> torch.Tensor:
        return tail_bucket(at.student_logprobs_NK, at.teacher_logprobs_NK, at.teacher_log_tail_N)
