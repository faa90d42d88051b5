"""What every loss refuses: shapes that do not fit, NaN from the teacher, a position without a support."""

# N = positions, K = support size

from __future__ import annotations

import torch


def check_support(student_NK: torch.Tensor, teacher_logprobs_NK: torch.Tensor) -> None:
    """Raises ValueError unless both are [N, K], no teacher logprob is NaN and every row has one above -inf."""
    if student_NK.shape != teacher_logprobs_NK.shape or student_NK.ndim != 2:
        raise ValueError(
            f"student logprobs {tuple(student_NK.shape)} and teacher logprobs {tuple(teacher_logprobs_NK.shape)} "
            f"must both be [N, K]"
        )
    if torch.isnan(teacher_logprobs_NK).any():
        raise ValueError("a teacher logprob is NaN: that position must not reach the loss")
    if teacher_logprobs_NK.isneginf().all(dim=1).any():
        raise ValueError("a position has no support: all its teacher logprobs are -inf")


def check_two_tokens(teacher_logprobs_NK: torch.Tensor) -> None:
    """Raises ValueError where K < 2, for losses that renormalise inside the support."""
    if teacher_logprobs_NK.shape[1] < 2:
        raise ValueError("K must be 2 or more: renormalised over one token, both sides are 1 and the loss is always 0")


def check_length(name: str, values_N: torch.Tensor, *, num_positions: int) -> None:
    """Raises ValueError unless `values_N` is [N]."""
    if values_N.shape != (num_positions,):
        raise ValueError(f"{name} {tuple(values_N.shape)} must be [N], one per position: N is {num_positions}")


def check_column(name: str, values_N: torch.Tensor, *, num_positions: int) -> None:
    """Raises ValueError unless `values_N` is [N] and holds no NaN."""
    check_length(name, values_N, num_positions=num_positions)
    if torch.isnan(values_N).any():
        raise ValueError(f"{name} holds NaN: that position must not reach the loss")


def check_old(old_logprobs_N: torch.Tensor, *, num_positions: int) -> None:
    """Raises ValueError unless it is [N] and finite."""
    check_column("old logprobs", old_logprobs_N, num_positions=num_positions)
    if not old_logprobs_N.isfinite().all():
        raise ValueError("an old logprob is not finite: the student cannot have written that token")


def check_student_column(values_N: torch.Tensor) -> None:
    """Raises ValueError unless it is one value per position. NaN passes: it is for the caller to count."""
    if values_N.ndim != 1:
        raise ValueError(f"student sampled logprobs {tuple(values_N.shape)} must be [N], one per position")
