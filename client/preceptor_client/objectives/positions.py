"""What a loss is computed from: both models at N positions, inside the support of each and at the sampled token."""

# N = positions, K = size of the largest support

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Positions:
    """Logprobs are natural, at the temperature of the loss. Prompt, padding, masked and failed positions are not here.

    An entry whose teacher logprob is -inf is outside the support, for both sides; every row has one that is not.
    """

    student_logprobs_NK: torch.Tensor
    """With gradients. Over the whole vocabulary where `is_normalised`, else up to a constant per row."""
    teacher_logprobs_NK: torch.Tensor
    teacher_log_tail_N: torch.Tensor
    """Log of the teacher's mass outside the support; -inf where there is none."""
    is_normalised: bool
    student_sampled_logprobs_N: torch.Tensor
    """Of the token that the student wrote; with gradients, normalised as the support's are."""
    teacher_sampled_logprobs_N: torch.Tensor
    """May be -inf, where the teacher cannot write it."""
    old_logprobs_N: torch.Tensor
    """What the student that wrote the token gave it; no gradients."""
    is_sampled_inside_N: torch.Tensor
    """Whether the token is in the support."""
    advantage_N: torch.Tensor
    """The credit of the token, of either sign; 0 where a run has no credit. No gradients."""
    turn_N: torch.Tensor
    """The student's turn that the token belongs to, from 0; integers."""
