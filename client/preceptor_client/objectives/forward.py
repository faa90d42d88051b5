"""The forward KL, of the teacher to the student: pays for what the teacher would write and the student would not."""

# N = positions, K = support size

from __future__ import annotations

import torch

from preceptor_client.objectives.classes import classes_of
from preceptor_client.objectives.divergences import forward_kl
from preceptor_client.train.objective.config import Outside


def forward(
    student_logprobs_NK: torch.Tensor,
    teacher_logprobs_NK: torch.Tensor,
    teacher_log_tail_N: torch.Tensor,
    *,
    outside: Outside,
) -> torch.Tensor:
    """Forward KL of teacher to student over the classes that `outside` makes of S; nats, shape N.

        loss = sum over classes of q_c (log q_c - log p_c)

    renormalise: both sides inside S, blind to the student's mass there. tail_bucket: S and the rest as one class.
    truncate: S alone, unnormalised, may be negative; its minimum has all the student's mass in S. arXiv 2306.13649
    (GKD), section 2. A student logprob of -inf counts as `floors.STUDENT_FLOOR` nats. Raises ValueError as the
    function of `classes` for that `outside` does.
    """
    return forward_kl(classes_of(student_logprobs_NK, teacher_logprobs_NK, teacher_log_tail_N, outside=outside))
