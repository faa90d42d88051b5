"""Where logs stop, so that a probability of 0 has a finite price and a finite gradient; and the dtype of a loss."""

# N = positions

from __future__ import annotations

import math

import torch

LOG_TINY = math.log(torch.finfo(torch.float32).tiny)
"""About -87.3 nats: the log of the smallest normal fp32, for masses that are computed as differences from 1."""
TEACHER_FLOOR = -100.0
"""Nats. What a sampled token counts that the teacher gives less, or cannot write at all (-inf)."""
STUDENT_FLOOR = -1e4
"""Nats. What a token counts that the student cannot write (-inf). Below every logprob that finite logits make, so that
those keep their gradient; a token at the floor has none, as no finite step would bring it back."""


def loss_dtype(*tensors: torch.Tensor) -> torch.dtype:
    """fp32 at least, float64 where one of them is."""
    dtype = torch.float32
    for tensor in tensors:
        dtype = torch.promote_types(dtype, tensor.dtype)
    return dtype


def floored_student(logprobs: torch.Tensor) -> torch.Tensor:
    """-inf becomes STUDENT_FLOOR, without gradient; the rest is left alone. Any shape."""
    return logprobs.masked_fill(logprobs.isneginf(), STUDENT_FLOOR)


def floored_teacher(sampled_logprobs_N: torch.Tensor) -> torch.Tensor:
    """What lies below TEACHER_FLOOR, -inf too, is raised to it."""
    return sampled_logprobs_N.clamp(min=TEACHER_FLOOR)
