"""The generalised Jensen-Shannon divergence: between the forward and the reverse KL, and bounded."""

# N = positions, K = support size

from __future__ import annotations

from dataclasses import dataclass

import torch

from preceptor_client.objectives.classes import Outside, check_outside, classes_of
from preceptor_client.objectives.divergences import mixture_jsd
from preceptor_client.objectives.objective import Objective
from preceptor_client.objectives.positions import Positions


def jsd(
    student_logprobs_NK: torch.Tensor,
    teacher_logprobs_NK: torch.Tensor,
    teacher_log_tail_N: torch.Tensor,
    *,
    beta: float,
    outside: Outside,
) -> torch.Tensor:
    """JSD(beta) of teacher and student over the classes that `outside` makes of S; nats, shape N.

        m = beta q + (1 - beta) p,  loss = beta KL(q || m) + (1 - beta) KL(p || m)

    arXiv 2306.13649 (GKD), beta being the teacher's weight in the mixture. It vanishes at both ends:
    loss / beta goes to the forward KL(q || p) as beta goes to 0, loss / (1 - beta) to the reverse KL(p || q) as beta
    goes to 1, so a learning rate that suits one beta does not suit another. At 0.5 it is symmetric and at most log 2
    where both sides add up to 1. With `truncate` it is still never negative and 0 only at p = q: its ends are the
    generalised KLs, which are corrected for the masses. Raises ValueError unless 0 < beta < 1, and as the function of
    `classes` for that `outside` does.
    """
    check_beta(beta)
    classes = classes_of(student_logprobs_NK, teacher_logprobs_NK, teacher_log_tail_N, outside=outside)
    return mixture_jsd(classes, beta=beta)


def check_beta(beta: float) -> None:
    """Raises ValueError for a weight of the teacher that makes no mixture."""
    if not 0 < beta < 1:
        raise ValueError(
            f"beta={beta} must lie between 0 and 1, above 0 and less than 1: at either end the divergence is always 0"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Jsd(Objective):
    """`jsd`."""

    beta: float = 0.5
    """Weight of the teacher in the mixture. Near 0 it acts as the forward KL times beta, near 1 as the reverse KL times
    1 - beta: it vanishes at both ends, so another beta may want another learning rate."""
    outside: Outside = "tail_bucket"
    """What becomes of the mass outside the support."""

    def __post_init__(self) -> None:
        check_beta(self.beta)
        check_outside(self.outside)

    @property
    def needs_normaliser(self) -> bool:
        return self.outside != "renormalise"

    @property
    def min_support(self) -> int:
        return 1 if self.needs_normaliser else 2

    def loss(self, at: Positions) -> torch.Tensor:
        return jsd(
            at.student_logprobs_NK,
            at.teacher_logprobs_NK,
            at.teacher_log_tail_N,
            beta=self.beta,
            outside=self.outside,
        )
