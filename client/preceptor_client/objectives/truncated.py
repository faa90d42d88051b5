"""The reverse KL's sum stopped at the support. It collapses; it is here to be compared with."""

# N = positions, K = support size

from __future__ import annotations

import torch

from preceptor_client.objectives.classes import inside_only
from preceptor_client.objectives.divergences import reverse_kl


def truncated(student_logprobs_NK: torch.Tensor, teacher_logprobs_NK: torch.Tensor) -> torch.Tensor:
    """The terms of the reverse KL that belong to S, nothing renormalised; nats, shape N, may be negative.

        loss = sum over k in S of p_k (log p_k - log q_k)

    arXiv 2603.25562, figure 6, "without renormalisation". Its minimum is not the teacher but p_k = q_k / e on S: the
    student keeps 1/e of the teacher's mass there and moves the rest out, wherever the loss does not look. Student
    logprobs are over the whole vocabulary. Raises ValueError as `classes.inside_only` does.
    """
    return reverse_kl(inside_only(student_logprobs_NK, teacher_logprobs_NK))
