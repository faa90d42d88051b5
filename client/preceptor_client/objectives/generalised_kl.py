"""The reverse KL between masses that need not add up to 1: truncated, corrected so that the teacher is its minimum."""

# N = positions, K = support size

from __future__ import annotations

import torch

from preceptor_client.objectives.classes import inside_only
from preceptor_client.objectives.divergences import reverse_kl
from preceptor_client.objectives.objective import Objective
from preceptor_client.objectives.positions import Positions


def generalised_kl(student_logprobs_NK: torch.Tensor, teacher_logprobs_NK: torch.Tensor) -> torch.Tensor:
    """Generalised reverse KL of student to teacher over S, nothing renormalised; nats, shape N, never negative.

        loss = sum over k in S of p_k (log p_k - log q_k) - p_k + q_k

    arXiv 2606.30406 (MOPD), Eq. 5. Zero exactly where p_k = q_k on S. Its derivative to log p_k is p_k log(p_k / q_k):
    the correction takes away the constant pull on p_k that collapses `truncated`. It needs no tail from the teacher.
    Student logprobs are over the whole vocabulary. Raises ValueError as `classes.inside_only` does.
    """
    classes = inside_only(student_logprobs_NK, teacher_logprobs_NK)
    masses_NC = classes.teacher_logprobs_NC.exp() - classes.student_logprobs_NC.exp()
    return reverse_kl(classes) + masses_NC.sum(dim=1)


class GeneralisedKl(Objective):
    """`generalised_kl`."""

    __slots__ = ()

    def loss(self, at: Positions) -> torch.Tensor:
        return generalised_kl(at.student_logprobs_NK, at.teacher_logprobs_NK)
