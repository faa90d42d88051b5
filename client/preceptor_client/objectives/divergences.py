"""Divergences between the classes of both models, p the student's and q the teacher's: nats, shape [N].

A class that is -inf for both adds nothing, to the value or to the gradient.
"""

# N = positions, C = classes

from __future__ import annotations

import math

import torch

from preceptor_client.objectives.classes import Classes


def reverse_kl(classes: Classes) -> torch.Tensor:
    """sum of p (log p - log q)."""
    log_p_NC, log_q_NC = classes.student_logprobs_NC, classes.teacher_logprobs_NC
    return (log_p_NC.exp() * _log_ratio(log_p_NC, log_q_NC, classes)).sum(dim=1)


def forward_kl(classes: Classes) -> torch.Tensor:
    """sum of q (log q - log p)."""
    log_p_NC, log_q_NC = classes.student_logprobs_NC, classes.teacher_logprobs_NC
    return (log_q_NC.exp() * _log_ratio(log_q_NC, log_p_NC, classes)).sum(dim=1)


def mixture_jsd(classes: Classes, *, beta: float) -> torch.Tensor:
    """beta * sum of q (log q - log m) + (1 - beta) * sum of p (log p - log m), with m = beta q + (1 - beta) p."""
    log_p_NC, log_q_NC = classes.student_logprobs_NC, classes.teacher_logprobs_NC
    # The derivative of logaddexp is NaN where both are -inf, whatever it is multiplied with.
    finite_log_q_NC = log_q_NC.masked_fill(log_q_NC.isneginf(), 0.0)
    log_m_NC = torch.logaddexp(finite_log_q_NC + math.log(beta), log_p_NC + math.log1p(-beta))
    of_teacher_NC = log_q_NC.exp() * _log_ratio(log_q_NC, log_m_NC, classes)
    of_student_NC = log_p_NC.exp() * _log_ratio(log_p_NC, log_m_NC, classes)
    return (beta * of_teacher_NC + (1 - beta) * of_student_NC).sum(dim=1)


def _log_ratio(above_NC: torch.Tensor, below_NC: torch.Tensor, classes: Classes) -> torch.Tensor:
    """0 outside the support, where it would be -inf - -inf."""
    return (above_NC - below_NC).masked_fill(classes.teacher_logprobs_NC.isneginf(), 0.0)
