"""The forward KL, of the teacher to the student: pays for what the teacher would write and the student would not."""

# N = positions, K = support size

from __future__ import annotations

from dataclasses import dataclass

import torch

from preceptor_client.objectives.classes import Outside, check_outside, classes_of
from preceptor_client.objectives.divergences import forward_kl
from preceptor_client.objectives.objective import Objective
from preceptor_client.objectives.positions import Positions


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Forward(Objective):
    """`forward`."""

    outside: Outside = "tail_bucket"
    """What becomes of the mass outside the support."""

    def __post_init__(self) -> None:
        check_outside(self.outside)

    @property
    def needs_normaliser(self) -> bool:
        return self.outside != "renormalise"

    @property
    def min_support(self) -> int:
        return 1 if self.needs_normaliser else 2

    def loss(self, at: Positions) -> torch.Tensor:
        return forward(at.student_logprobs_NK, at.teacher_logprobs_NK, at.teacher_log_tail_N, outside=self.outside)
