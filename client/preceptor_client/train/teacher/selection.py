"""Asks a support rule, which may be a user's own, for the supports of a response, and checks what it gives."""

# N = positions, K = width of the supports

from __future__ import annotations

import numpy as np
from preceptor.wire import TokenArray

from preceptor_client.errors import PreceptorError
from preceptor_client.train.errors import InvalidPartError
from preceptor_client.train.teacher.support import Support, SupportRule
from preceptor_client.types import ResponseScores


def selected(rule: SupportRule, scores: ResponseScores, *, sampled_ids_N: TokenArray, vocabulary_size: int) -> Support:
    """The supports. Raises InvalidPartError, which names objective.support, where the rule fails or what it gives is no
    support; `vocabulary_size` is the student's."""
    name = type(rule).__name__
    try:
        support = rule.select(scores, sampled_ids_N=sampled_ids_N)
    except PreceptorError:
        raise
    except Exception as error:
        raise InvalidPartError(f"objective.support: {name}.select failed: {error!r}") from error
    if problem := _problem(support, num_positions=len(scores.positions_N), vocabulary_size=vocabulary_size):
        raise InvalidPartError(f"objective.support: {name}.select {problem}")
    return support


def _problem(support: Support, *, num_positions: int, vocabulary_size: int) -> str:
    """What is wrong with it; empty where nothing is."""
    shape = support.ids_NK.shape
    if len(shape) != 2 or shape[0] != num_positions:
        return f"gave ids of shape {shape} for {num_positions} scored positions: give one row for each"
    if support.teacher_logprobs_NK.shape != shape:
        return f"gave logprobs of shape {support.teacher_logprobs_NK.shape} for ids of shape {shape}: give one for each"
    for column in ("teacher_tail_N", "is_sampled_inside_N"):
        if getattr(support, column).shape != (num_positions,):
            found = getattr(support, column).shape
            return f"gave {column} of shape {found} for {num_positions} scored positions: give one for each"
    if support.ids_NK.size and not 0 <= int(np.min(support.ids_NK)) <= int(np.max(support.ids_NK)) < vocabulary_size:
        return f"gave an id that is outside the student's vocabulary of {vocabulary_size}"
    return ""
