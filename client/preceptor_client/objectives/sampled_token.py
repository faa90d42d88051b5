"""The baseline: a policy gradient on the one token that the student wrote, clipped as PPO's is."""

# N = positions

from __future__ import annotations

from dataclasses import dataclass

import torch

from preceptor_client.objectives.checks import check_column, check_old, check_student_column
from preceptor_client.objectives.floors import floored_teacher, loss_dtype
from preceptor_client.objectives.objective import Objective
from preceptor_client.objectives.policy_gradient import clipped_policy_gradient
from preceptor_client.objectives.positions import Positions


def sampled_token(
    student_logprobs_N: torch.Tensor,
    teacher_logprobs_N: torch.Tensor,
    old_logprobs_N: torch.Tensor,
    *,
    clip_range: float,
    dual_clip: float,
) -> torch.Tensor:
    """PPO on the sampled token, its advantage being how much likelier the teacher finds it; shape N, not a divergence.

        A = sg(log q(y) - log old(y)),  r = p(y) / old(y),  clip(r) = r kept within [1 - clip_range, 1 + clip_range]
        loss = -min(r A, clip(r) A),  and where A < 0 at most -dual_clip A

    arXiv 2603.25562, Eq. 2 and 5, and its code: vanilla PPO with clip 0.2 and dual clip (arXiv 1912.09729) 3.0. Where
    old is the student itself the expected gradient over y is that of the reverse KL over the vocabulary. log q(y) is at
    least -100 nats, so a token that the teacher cannot write has a finite, if large, cost. Raises ValueError for shapes
    other than [N], NaN from the teacher, and an old logprob that is not finite.
    """
    check_student_column(student_logprobs_N)
    check_column("teacher sampled logprobs", teacher_logprobs_N, num_positions=len(student_logprobs_N))
    check_old(old_logprobs_N, num_positions=len(student_logprobs_N))

    dtype = loss_dtype(student_logprobs_N, teacher_logprobs_N, old_logprobs_N)
    old_N = old_logprobs_N.detach().to(dtype)
    return clipped_policy_gradient(
        student_logprobs_N,
        old_N,
        floored_teacher(teacher_logprobs_N.detach().to(dtype)) - old_N,
        clip_low=clip_range,
        clip_high=clip_range,
        dual_clip=dual_clip,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class SampledToken(Objective):
    """`sampled_token`, over one token per position."""

    clip_range: float = 0.2
    """PPO's clip of the ratio to the student that wrote the token."""
    dual_clip: float = 3.0
    """Bound of that ratio where the advantage is negative."""

    takes_support = False
    takes_extrapolation = True
    is_estimate = True

    def __post_init__(self) -> None:
        if not 0 < self.clip_range < 1:
            raise ValueError(f"clip_range={self.clip_range} must be above 0 and less than 1")
        if not self.dual_clip > 1:
            raise ValueError(f"dual_clip={self.dual_clip} must be above 1")

    def loss(self, at: Positions) -> torch.Tensor:
        return sampled_token(
            at.student_sampled_logprobs_N,
            at.teacher_sampled_logprobs_N,
            at.old_logprobs_N,
            clip_range=self.clip_range,
            dual_clip=self.dual_clip,
        )
