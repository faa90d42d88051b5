"""Scored rollouts made up for tests of what comes after scoring."""

# N = scored positions, K = support size

from __future__ import annotations

import numpy as np
from preceptor.wire import PositionStatus
from preceptor_client.train.data.examples import Example
from preceptor_client.train.rollout.episode import single_turn
from preceptor_client.train.student.view import StudentView
from preceptor_client.train.teacher.scored import ScoredEpisode
from preceptor_client.types import ResponseScores


def student_view(num_tokens: int, *, logprob: float = -1.0) -> StudentView:
    """The same at every token."""
    return StudentView(
        logprobs_T=np.full(num_tokens, logprob, np.float32), entropies_T=np.full(num_tokens, 0.5, np.float32)
    )


def scored_rollout(*, num_positions: int, top_k: int = 2) -> ScoredEpisode:
    """A response whose first positions are scored, and whose last is not."""
    status_T = np.full(num_positions + 1, PositionStatus.OK, np.uint8)
    status_T[-1] = PositionStatus.EXCLUDED
    column_N = np.full(num_positions, -1.0, np.float32)
    return ScoredEpisode(
        episode=single_turn(
            example=Example(index=0, prompt="a"),
            slot=0,
            prompt_ids=(1,),
            response_ids=tuple(range(5, 6 + num_positions)),
            finish_reason="length",
            student=student_view(num_positions + 1),
        ),
        scores=ResponseScores(
            status_T=status_T,
            positions_N=np.arange(num_positions),
            support_ids_NK=np.tile(np.arange(top_k), (num_positions, 1)),
            support_logprobs_NK=np.tile(np.full(top_k, -1.0, np.float32), (num_positions, 1)),
            sampled_logprobs_N=column_N,
            log_tail_mass_N=column_N,
            entropies_N=-column_N,
        ),
    )
