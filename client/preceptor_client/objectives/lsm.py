"""Local support matching: the reverse KL of the student to the teacher inside the teacher's top K tokens.

Owns the formula. Does not know which positions are eligible: prompt, padding and failed positions are not among N.
"""

# N = positions, K = support size

from __future__ import annotations

import torch

from preceptor_client.objectives.classes import renormalised
from preceptor_client.objectives.divergences import reverse_kl
from preceptor_client.objectives.floors import loss_dtype
from preceptor_client.objectives.objective import Objective
from preceptor_client.objectives.positions import Positions


def lsm(
    student_logits_NK: torch.Tensor, teacher_logprobs_NK: torch.Tensor, *, temperature: float = 1.0
) -> torch.Tensor:
    """Reverse KL of student to teacher over the teacher's K tokens S, both renormalised inside S; nats, shape N.

        p_k = softmax over S of (student logit / temperature),  q_k = teacher probability / its sum over S
        loss = sum over k in S of p_k (log p_k - log q_k)

    arXiv 2603.25562, Eq. 6-8. The gradient to logit k is p_k (log(p_k / q_k) - loss) / temperature. Teacher logprobs
    are taken at the same temperature already. An entry of -inf is outside S, for both sides. Computed in fp32 at
    least. Raises ValueError where K < 2 (the loss is identically 0), for NaN and for a row without any support.
    """
    dtype = loss_dtype(student_logits_NK, teacher_logprobs_NK)
    return reverse_kl(renormalised(student_logits_NK.to(dtype) / temperature, teacher_logprobs_NK))


class Lsm(Objective):
    """`lsm`, at the temperature of the logprobs."""

    __slots__ = ()

    needs_normaliser = False
    min_support = 2
    takes_extrapolation = True

    def loss(self, at: Positions) -> torch.Tensor:
        return lsm(at.student_logprobs_NK, at.teacher_logprobs_NK)
