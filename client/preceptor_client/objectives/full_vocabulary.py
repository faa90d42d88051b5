"""The reverse KL over all tokens: what the others approximate."""

# N = positions, V = vocabulary

from __future__ import annotations

import torch

from preceptor_client.objectives.objective import Objective
from preceptor_client.objectives.positions import Positions
from preceptor_client.objectives.tail_bucket import tail_bucket


def full_vocabulary(student_logprobs_NV: torch.Tensor, teacher_logprobs_NV: torch.Tensor) -> torch.Tensor:
    """Reverse KL of student to teacher over the vocabulary; nats, shape N.

        loss = sum over v of p_v (log p_v - log q_v)

    arXiv 2603.25562, Eq. 4. Tokens that the teacher cannot write (-inf) are one class together, at the smallest normal
    fp32 (log: -87.3): left out, as `truncated` leaves them, the student's mass would escape to them. Without such
    tokens that class is empty and adds the rounding of the student's sum, at most some 1e-5 in fp32. Raises ValueError
    as `classes.inside_only` does.
    """
    nothing_N = torch.full_like(teacher_logprobs_NV[..., 0], float("-inf"))
    return tail_bucket(student_logprobs_NV, teacher_logprobs_NV, nothing_N)


class FullVocabulary(Objective):
    """`full_vocabulary`, over all tokens."""

    __slots__ = ()

    is_over_whole_vocabulary = True
    min_support = 2

    def loss(self, at: Positions) -> torch.Tensor:
        return full_vocabulary(at.student_logprobs_NK, at.teacher_logprobs_NK)
