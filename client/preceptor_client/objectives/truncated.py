"""The reverse KL's sum stopped at the support. It collapses; it is here to be compared with."""

# N = positions, K = support size

from __future__ import annotations

import torch

from preceptor_client.objectives.classes import inside_only
from preceptor_client.objectives.divergences import reverse_kl
from preceptor_client.objectives.objective import Objective
from preceptor_client.objectives.positions import Positions


def truncated(student_logprobs_NK: torch.Tensor, teacher_logprobs_NK: torch.Tensor) -> torch.Tensor:
    """The terms of the reverse KL that belong to S, nothing renormalised; nats, shape N, may be negative.

        loss = sum over k in S of p_k (log p_k - log q_k)

    arXiv 2603.25562, figure 6, "without renormalisation". Its minimum is not the teacher but p_k = q_k / e on S: the
    student keeps 1/e of the teacher's mass there and moves the rest out, wherever the loss does not look. Student
    logprobs are over the whole vocabulary. Raises ValueError as `classes.inside_only` does.
    """
    return reverse_kl(inside_only(student_logprobs_NK, teacher_logprobs_NK))


class Truncated(Objective):
    """`truncated`."""

    __slots__ = ()

    caveat = (
        "lets the student's mass leave the support, where nothing is lost for it, and is known to collapse: it is here "
        "for comparison; generalised_kl is the same with that mass priced"
    )

    def loss(self, at: Positions) -> torch.Tensor:
        return truncated(at.student_logprobs_NK, at.teacher_logprobs_NK)
