from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from preceptor.wire import PositionStatus
from preceptor_client.train.data.examples import Example
from preceptor_client.train.rollout.episode import single_turn
from preceptor_client.train.student.view import StudentView
from preceptor_client.train.teacher.scored import ScoredEpisode
from preceptor_client.train.teacher.views import advice, view_responses, view_teacher
from preceptor_client.types import ResponseScores


def _scored(
    statuses: list[PositionStatus], *, ids_NK: list[list[int]], logprobs_NK: list[list[float]]
) -> ScoredEpisode:
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
    rollout = single_turn(
        example=Example(index=0, prompt="a"),
        slot=0,
        prompt_ids=(1,),
        response_ids=response,
        finish_reason="length",
        student=StudentView(
            logprobs_T=np.full(len(response), -1, np.float32), entropies_T=np.full(len(response), 0.5, np.float32)
        ),
    )
    return ScoredEpisode(episode=rollout, scores=scores)


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


def test_a_step_without_a_score_has_a_share_of_zero() -> None:
    one = _scored([PositionStatus.SPECIAL], ids_NK=[], logprobs_NK=[])
    view = view_teacher([one])
    assert (view.scored_share, view.num_by_status["special"], view.non_finite_share) == (0.0, 1, 0.0)


def test_positions_with_a_single_token_left_weigh_in_the_mean_of_the_unmapped_mass() -> None:
    """One position at 0.125, and three of which two were dropped at 0.5."""
    ok = PositionStatus.OK
    first = _scored([ok], ids_NK=[[5, 3]], logprobs_NK=[[-1, -1]])
    second = _scored([ok], ids_NK=[[5, 3]], logprobs_NK=[[-1, -1]])
    second = replace(second, scores=replace(second.scores, unmapped_mass=0.5), num_single_support=2)
    view = view_teacher([first, second])
    assert view.num_single_support == 2
    assert view.unmapped_mass == pytest.approx((0.125 + 3 * 0.5) / 4)


def test_mean_length_is_over_responses() -> None:
    ok = PositionStatus.OK
    steps = [_scored([ok] * num, ids_NK=[[5, 3]] * num, logprobs_NK=[[-1, -1]] * num) for num in (1, 4)]
    view = view_responses([one.episode for one in steps])
    assert (view.num_responses, view.mean_response_length) == (2, 2.5)
    assert view_responses([]).mean_response_length == 0.0
