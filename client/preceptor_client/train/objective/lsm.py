"""Local support matching: the reverse KL of the student to the teacher inside the teacher's top K tokens.

Owns the formula. Does not know which positions are eligible: prompt, padding and failed positions are not among N.
"""

# N = positions, K = support size

from __future__ import annotations

import torch


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
    if student_logits_NK.shape != teacher_logprobs_NK.shape or student_logits_NK.ndim != 2:
        raise ValueError(
            f"student logits {tuple(student_logits_NK.shape)} and teacher logprobs "
            f"{tuple(teacher_logprobs_NK.shape)} must both be [N, K]"
        )
    if student_logits_NK.shape[1] < 2:
        raise ValueError("K must be 2 or more: renormalised over one token, both sides are 1 and the loss is always 0")
    if torch.isnan(teacher_logprobs_NK).any():
        raise ValueError("a teacher logprob is NaN: that position must not reach the loss")
    in_support_NK = teacher_logprobs_NK > float("-inf")
    if not in_support_NK.any(dim=1).all():
        raise ValueError("a position has no support: all its teacher logprobs are -inf")

    dtype = torch.promote_types(torch.promote_types(student_logits_NK.dtype, teacher_logprobs_NK.dtype), torch.float32)
    logits_NK = (student_logits_NK.to(dtype) / temperature).masked_fill(~in_support_NK, float("-inf"))
    log_p_NK = torch.log_softmax(logits_NK, dim=1)
    log_q_NK = torch.log_softmax(teacher_logprobs_NK.to(dtype), dim=1)
    p_NK = log_p_NK.exp()
    # p log(p / q) and its derivative go to 0 with p, and so do not depend on logs that may be -inf there.
    log_ratio_NK = (log_p_NK - log_q_NK).masked_fill(p_NK == 0, 0.0)
    return (p_NK * log_ratio_NK).sum(dim=1)
