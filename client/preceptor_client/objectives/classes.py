"""Three ways to make classes out of a support: renormalise inside it, add the rest as one more class, or drop the rest.

A divergence between classes does not know which of the three made them.
"""

# N = positions, K = support size, C = classes: K, or K + 1 with the tail

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch

from preceptor_client.objectives.checks import check_column, check_support, check_two_tokens
from preceptor_client.objectives.floors import LOG_TINY, floored_student, loss_dtype

Outside = Literal["renormalise", "tail_bucket", "truncate"]
"""What becomes of the mass outside the support."""


def check_outside(outside: str) -> None:
    """Raises ValueError for a name that is none."""
    if outside not in get_args(Outside):
        raise ValueError(f"outside={outside!r} must be one of {', '.join(get_args(Outside))}")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Classes:
    """Natural logs of the mass of each class, fp32 at least. A class outside the support is -inf for both, and only
    there is either -inf."""

    student_logprobs_NC: torch.Tensor
    teacher_logprobs_NC: torch.Tensor


def classes_of(
    student_logprobs_NK: torch.Tensor,
    teacher_logprobs_NK: torch.Tensor,
    teacher_log_tail_N: torch.Tensor,
    *,
    outside: Outside,
) -> Classes:
    """Classes by the name of what becomes of the mass outside the support. Only `tail_bucket` reads the tail."""
    if outside == "renormalise":
        return renormalised(student_logprobs_NK, teacher_logprobs_NK)
    if outside == "tail_bucket":
        return with_tail(student_logprobs_NK, teacher_logprobs_NK, teacher_log_tail_N)
    return inside_only(student_logprobs_NK, teacher_logprobs_NK)


def inside_only(student_logprobs_NK: torch.Tensor, teacher_logprobs_NK: torch.Tensor) -> Classes:
    """The K tokens with the probabilities that they have; neither side adds up to 1.

    A student logprob of -inf inside the support counts as `floors.STUDENT_FLOOR`, without gradient. Raises ValueError
    for shapes other than [N, K], NaN from the teacher, a row without support.
    """
    check_support(student_logprobs_NK, teacher_logprobs_NK)
    dtype = loss_dtype(student_logprobs_NK, teacher_logprobs_NK)
    student_NK = floored_student(student_logprobs_NK.to(dtype))
    return Classes(
        student_logprobs_NC=student_NK.masked_fill(teacher_logprobs_NK.isneginf(), float("-inf")),
        teacher_logprobs_NC=teacher_logprobs_NK.to(dtype),
    )


def renormalised(student_logprobs_NK: torch.Tensor, teacher_logprobs_NK: torch.Tensor) -> Classes:
    """The K tokens, both sides made to add up to 1 over them, so the student's need no normaliser (logits will do).

    Raises ValueError as `inside_only` does, and where K < 2: both sides would be 1.
    """
    classes = inside_only(student_logprobs_NK, teacher_logprobs_NK)
    check_two_tokens(teacher_logprobs_NK)
    return Classes(
        student_logprobs_NC=torch.log_softmax(classes.student_logprobs_NC, dim=1),
        teacher_logprobs_NC=torch.log_softmax(classes.teacher_logprobs_NC, dim=1),
    )


def with_tail(
    student_logprobs_NK: torch.Tensor, teacher_logprobs_NK: torch.Tensor, teacher_log_tail_N: torch.Tensor
) -> Classes:
    """The K tokens and, as class K + 1, all others together. Student logprobs are over the whole vocabulary.

    The student's tail is 1 - its mass in the support. Both tails are at least the smallest normal fp32 (log: -87.3):
    where the student's is not (mass 1, or above by rounding) it has no gradient, and a teacher's of -inf counts so.
    A student's tail below some 1e-6 is mostly rounding in fp32: a forward KL, whose pull on the tail is divided by it,
    is off by about as much as the teacher's tail there; the reverse KL takes only its log and is not.
    Raises ValueError as `inside_only` does, and for a tail that is NaN or not [N].
    """
    classes = inside_only(student_logprobs_NK, teacher_logprobs_NK)
    check_column("teacher log tail", teacher_log_tail_N, num_positions=len(student_logprobs_NK))
    mass_N = classes.student_logprobs_NC.exp().sum(dim=1)
    # The logs are rounded to a part in 10^7 of 1 already, so a log1mexp would gain nothing over 1 - mass.
    student_tail_N = (1 - mass_N).clamp(min=torch.finfo(torch.float32).tiny).log()
    teacher_tail_N = teacher_log_tail_N.to(mass_N.dtype).clamp(min=LOG_TINY)
    return Classes(
        student_logprobs_NC=torch.cat([classes.student_logprobs_NC, student_tail_N[:, None]], dim=1),
        teacher_logprobs_NC=torch.cat([classes.teacher_logprobs_NC, teacher_tail_N[:, None]], dim=1),
    )
