from __future__ import annotations

import numpy as np
import pytest
import torch
from preceptor_client.train.data.examples import Example
from preceptor_client.train.learner.columns import StudentColumns
from preceptor_client.train.learner.measure import spread_rows, student_columns
from preceptor_client.train.objective.config import ObjectiveConfig
from preceptor_client.train.rollout.config import RolloutConfig
from preceptor_client.train.rollout.hf import HfRollouts
from preceptor_client.train.student.student import Student
from preceptor_client.train.teacher.config import TeacherConfig
from preceptor_client.train.teacher.scored import ScoredEpisode

from tests.unit.client.train.assembled import scoring_for
from tests.unit.client.train.fake_scorer import FakeScorer, agreement_with
from tests.unit.client.train.rollouts import scored_rollout

TOP_K = 6


def _scored(student: Student, scorer: FakeScorer) -> list[ScoredEpisode]:
    config = RolloutConfig(prompts_per_step=6, max_new_tokens=9, batch_size=8)
    teacher = TeacherConfig(address="a:1", top_k=TOP_K, temperature=0.5)
    agreement = agreement_with(scorer.teacher)
    scoring = scoring_for(
        scorer, teacher=teacher, objective=ObjectiveConfig(), agreement=agreement, vocabulary_size=259
    )
    examples = [Example(index=index, prompt="ab" * (index + 1)) for index in range(6)]
    for batch in HfRollouts(student, config=config, seed=0).generate(examples, step=1):
        scoring.submit(batch, name="step-1")
    return scoring.gather()


@torch.no_grad()
def _dense(student: Student, one: ScoredEpisode) -> tuple[list[float], list[float]]:
    """Mass and overlap of every position."""
    prompt, response = one.episode.prompt_ids, one.episode.response_ids
    logits_TV = student.model(torch.tensor([[*prompt, *response]])).logits[0, len(prompt) - 1 : -1].double()
    p_TV = torch.softmax(logits_TV / 0.5, dim=1)
    masses, overlaps = [], []
    for p_V, ids_K, logprobs_K in zip(p_TV, one.scores.support_ids_NK, one.scores.support_logprobs_NK, strict=True):
        inside = ids_K[~np.isneginf(logprobs_K)].tolist()
        masses.append(float(p_V[inside].sum()))
        overlaps.append(len(set(p_V.topk(TOP_K).indices.tolist()) & set(inside)) / len(inside))
    return masses, overlaps


@pytest.mark.parametrize("max_positions", [1000, 7])
def test_masses_and_overlaps_are_those_of_a_dense_head_where_they_are_measured(
    student: Student, scorer: FakeScorer, max_positions: int
) -> None:
    """Some rows are filled up, so that the filler must not count."""
    scorer.support_of = lambda position: 4 if position == 2 else None
    scored = _scored(student, scorer)
    columns = student_columns(student, scored, temperature=0.5, micro_batch_size=2, max_positions=max_positions)
    num_measured = 0
    for one, column in zip(scored, columns, strict=True):
        masses, overlaps = _dense(student, one)
        is_measured_N = ~np.isnan(column.masses_N)
        num_measured += int(is_measured_N.sum())
        assert (np.isnan(column.overlaps_N) == ~is_measured_N).all()
        np.testing.assert_allclose(column.masses_N[is_measured_N], np.array(masses)[is_measured_N], rtol=1e-4)
        np.testing.assert_allclose(column.overlaps_N[is_measured_N], np.array(overlaps)[is_measured_N], rtol=1e-6)
        assert np.isnan(column.losses_N).all()
    total = sum(len(one.scores.positions_N) for one in scored)
    # Each of the three micro-batches rounds its share up.
    assert num_measured == total if max_positions > total else 7 <= num_measured <= 10


def test_a_step_without_any_score_measures_nothing(student: Student) -> None:
    columns = student_columns(student, [scored_rollout(num_positions=0)], temperature=1.0)
    assert [type(column) for column in columns] == [StudentColumns]
    assert len(columns[0].masses_N) == 0


@pytest.mark.parametrize("length", [16, 34, 55])
def test_measured_rows_are_in_step_with_no_length_of_a_response(length: int) -> None:
    """Each sixth of the responses' positions is met about equally often; a fixed stride of 16 would meet one alone."""
    rows_M = spread_rows(128 * length, num_wanted=128)
    assert len(rows_M) == 128
    assert (np.diff(rows_M) > 0).all()
    counts = np.bincount(rows_M % length * 6 // length, minlength=6)
    assert counts.min() >= 10


def test_few_rows_are_all_measured() -> None:
    assert spread_rows(5, num_wanted=5).tolist() == [0, 1, 2, 3, 4]
    assert spread_rows(0, num_wanted=5).tolist() == []
