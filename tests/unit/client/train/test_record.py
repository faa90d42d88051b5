from __future__ import annotations

import math

import numpy as np
import pytest
from preceptor.wire import PositionStatus
from preceptor_client.train.data import Example
from preceptor_client.train.record import advice, view_teacher
from preceptor_client.train.rollout import Rollout
from preceptor_client.train.scoring import ScoredRollout
from preceptor_client.types import ResponseScores


def _scored(
    statuses: list[PositionStatus], *, ids_NK: list[list[int]], logprobs_NK: list[list[float]]
) -> ScoredRollout:
    """The student wrote 5, 6, 7, ...; the teacher gives each of them e^-2 and keeps a quarter outside its support."""
    status_T = np.array(statuses, np.uint8)
    positions_N = np.flatnonzero(status_T == PositionStatus.OK)
    response = tuple(range(5, 5 + len(statuses)))
    scores = ResponseScores(
        status_T=status_T,
        positions_N=positions_N,
        support_ids_NK=np.array(ids_NK),
        support_logprobs_NK=np.array(logprobs_NK, np.float32),
        sampled_logprobs_N=np.full(len(positions_N), -2, np.float32),
        log_tail_mass_N=np.full(len(positions_N), math.log(0.25), np.float32),
        entropies_N=np.full(len(positions_N), 0.5, np.float32),
        unmapped_mass=0.125,
    )
    rollout = Rollout(
        example=Example(index=0, prompt="a"), slot=0, prompt_ids=(1,), response_ids=response, finish_reason="length"
    )
    return ScoredRollout(rollout=rollout, scores=scores)


def test_what_fills_a_row_up_is_outside_the_support() -> None:
    """The student's 5 is in the support; its 6 stands there only as a filler."""
    ok = PositionStatus.OK
    one = _scored([ok, ok], ids_NK=[[5, 3, 5], [6, 3, 4]], logprobs_NK=[[-1, -1, -math.inf], [-math.inf, -1, -1]])
    view = view_teacher([one])
    assert view.outside_share == 0.5
    assert view.teacher_mass == pytest.approx(0.75)
    assert (view.teacher_logprob, view.teacher_entropy) == (-2.0, 0.5)


def test_shares_are_of_the_positions_that_were_asked_for() -> None:
    status = PositionStatus
    one = _scored(
        [status.OK, status.EXCLUDED, status.MISALIGNED, status.MISALIGNED, status.SPECIAL],
        ids_NK=[[5, 3]],
        logprobs_NK=[[-1, -1]],
    )
    view = view_teacher([one])
    assert view.scored_share == 0.25
    assert view.unmapped_mass == 0.125
    assert advice(view).startswith("2 are misaligned; ")
