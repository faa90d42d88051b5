from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from preceptor.wire import PositionStatus
from preceptor_client.objectives.lsm import lsm
from preceptor_client.train.data.examples import Example
from preceptor_client.train.errors import TrainingStoppedError
from preceptor_client.train.learner.columns import StudentColumns
from preceptor_client.train.learner.config import OptimizerConfig
from preceptor_client.train.learner.learner import Learner, StepResult
from preceptor_client.train.learner.loss import Loss
from preceptor_client.train.objective.config import ObjectiveConfig
from preceptor_client.train.objective.reduction import WeightArray
from preceptor_client.train.rollout.config import RolloutConfig
from preceptor_client.train.rollout.hf import HfRollouts
from preceptor_client.train.student.student import Student
from preceptor_client.train.teacher.config import TeacherConfig
from preceptor_client.train.teacher.scored import ScoredEpisode
from preceptor_client.types import ResponseScores

from tests.unit.client.train.assembled import learner_for, one_task, position_weights, scoring_for, weighted_mean
from tests.unit.client.train.fake_scorer import FakeScorer, agreement_with
from tests.unit.client.train.tiny import tiny_student


def _scored(student: Student, scorer: FakeScorer, *, top_k: int = 6, num_prompts: int = 3) -> list[ScoredEpisode]:
    config = RolloutConfig(prompts_per_step=num_prompts, max_new_tokens=7, batch_size=8, responses_per_prompt=2)
    examples = [Example(index=index, prompt="ab" * (index + 1)) for index in range(num_prompts)]
    teacher = TeacherConfig(address="a:1", top_k=top_k)
    scoring = scoring_for(
        scorer,
        teacher=teacher,
        objective=ObjectiveConfig(),
        agreement=agreement_with(scorer.teacher),
        vocabulary_size=259,
    )
    for batch in HfRollouts(student, config=config, seed=0).generate(examples, step=1):
        scoring.submit(batch, name="step-1")
    return scoring.gather()


def _update(student: Student, *, micro_batch_size: int = 16, warmup_steps: int = 0, lr: float = 1e-3) -> Learner:
    config = OptimizerConfig(learning_rate=lr, micro_batch_size=micro_batch_size, warmup_steps=warmup_steps)
    loss = Loss(student, config=ObjectiveConfig(), temperature=1.0)
    return learner_for(student, config=config, loss=loss)


def _accumulate(
    student: Student, scored: Sequence[ScoredEpisode], *, micro_batch_size: int = 16
) -> tuple[float, list[StudentColumns]]:
    weights = position_weights(scored, reduction="position_mean")
    return _gradients_of(_update(student, micro_batch_size=micro_batch_size), scored, weights)


def _gradients_of(
    update: Learner, scored: Sequence[ScoredEpisode], weights: Sequence[WeightArray]
) -> tuple[float, list[StudentColumns]]:
    gradients = update.accumulate_gradients(one_task(scored, weighted_mean(weights)))
    return gradients.loss, gradients.columns


def _apply(update: Learner, scored: Sequence[ScoredEpisode], *, step: int) -> StepResult | None:
    terms = weighted_mean(position_weights(scored, reduction="position_mean"))
    return update.apply(one_task(scored, terms), step=step)


def _masses(columns: Sequence[StudentColumns]) -> list[float]:
    return [float(mass) for one in columns for mass in one.masses_N]


def _gradients(student: Student) -> list[torch.Tensor]:
    gradients = []
    for parameter in student.model.parameters():
        assert parameter.grad is not None
        gradients.append(parameter.grad.clone())
        parameter.grad = None
    return gradients


def test_loss_mass_and_overlap_equal_a_dense_computation(student: Student, scorer: FakeScorer) -> None:
    scored = _scored(student, scorer)
    loss, columns = _accumulate(student, scored, micro_batch_size=2)
    losses: list[float] = []
    masses: list[float] = []
    overlaps: list[float] = []
    for one in scored:
        prompt, response = one.episode.prompt_ids, one.episode.response_ids
        with torch.no_grad():
            logits_TV = student.model(torch.tensor([[*prompt, *response]])).logits[0, len(prompt) - 1 : -1].double()
        p_TV = torch.softmax(logits_TV, dim=1)
        p_TK = p_TV.gather(1, torch.from_numpy(one.scores.support_ids_NK))
        q_TK = torch.from_numpy(one.scores.support_logprobs_NK).double().exp()
        inside = p_TK / p_TK.sum(1, keepdim=True)
        losses += (inside * (inside / (q_TK / q_TK.sum(1, keepdim=True))).log()).sum(1).tolist()
        masses += p_TK.sum(1).tolist()
        for p_V, teachers in zip(p_TV, one.scores.support_ids_NK, strict=True):
            overlaps.append(len(set(p_V.topk(6).indices.tolist()) & set(teachers.tolist())) / 6)
    # fp32 through two layers.
    assert loss == pytest.approx(np.mean(losses), rel=1e-4)
    assert [float(each) for one in columns for each in one.losses_N] == pytest.approx(losses, rel=1e-3, abs=1e-6)
    assert _masses(columns) == pytest.approx(masses, rel=1e-4)
    assert [float(each) for one in columns for each in one.overlaps_N] == pytest.approx(overlaps)
    assert len(set(overlaps)) > 2


def test_micro_batches_change_neither_loss_nor_gradient(student: Student, scorer: FakeScorer) -> None:
    scored = _scored(student, scorer)
    whole, _ = _accumulate(student, scored)
    expected = _gradients(student)
    for size in (1, 4):
        parts, _ = _accumulate(student, scored, micro_batch_size=size)
        assert parts == pytest.approx(whole, rel=1e-5)
        for ours, theirs in zip(_gradients(student), expected, strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-4)


def test_positions_without_score_change_neither_loss_nor_gradient(student: Student, scorer: FakeScorer) -> None:
    """Every second position is excluded by the teacher, or its columns are taken out of a full answer."""
    full = _scored(student, scorer)
    taken_out = [ScoredEpisode(episode=one.episode, scores=_every_second(one.scores)) for one in full]
    expected, _ = _accumulate(student, taken_out)
    gradients = _gradients(student)
    scorer.status_of = lambda position: PositionStatus.EXCLUDED if position % 2 else PositionStatus.OK
    assert _accumulate(student, _scored(student, scorer))[0] == expected
    for ours, theirs in zip(_gradients(student), gradients, strict=True):
        assert torch.equal(ours, theirs)


def test_rows_that_are_filled_up_count_what_is_left_of_them(student: Student, scorer: FakeScorer) -> None:
    """Row 0 of each response has one token left and is dropped, the others have three of six: the same as K = 3 there,
    loss, gradient and mass."""
    scorer.support_of = lambda position: 3 if position else 1
    filled_up = _scored(student, scorer, top_k=6)
    scorer.support_of = lambda position: None
    narrow = [
        ScoredEpisode(episode=one.episode, scores=_without_first(one.scores))
        for one in _scored(student, scorer, top_k=3)
    ]
    expected, columns = _accumulate(student, narrow)
    gradients = _gradients(student)
    # Sums of six terms, three of them zeros, in another order.
    loss, filled_columns = _accumulate(student, filled_up)
    assert loss == pytest.approx(expected, rel=1e-6)
    assert _masses(filled_columns) == pytest.approx(_masses(columns), rel=1e-5)
    for ours, theirs in zip(_gradients(student), gradients, strict=True):
        assert torch.isfinite(ours).all()
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-4)


def test_one_token_alone_has_neither_loss_nor_gradient() -> None:
    """Why such rows are dropped; here they do no harm either."""
    logits_NK = torch.tensor([[0.5, 0.5, 0.5]], requires_grad=True)
    loss_N = lsm(logits_NK, torch.tensor([[-0.1, -math.inf, -math.inf]]))
    torch.autograd.backward(loss_N.sum())
    assert loss_N.tolist() == [0.0]
    assert logits_NK.grad is not None
    assert logits_NK.grad.tolist() == [[0.0, 0.0, 0.0]]


def test_responses_without_any_score_are_not_counted(student: Student, scorer: FakeScorer) -> None:
    scored = _scored(student, scorer)
    alone, _ = _accumulate(student, scored[:2])
    expected = _gradients(student)
    unscored = [_without_scores(one) for one in scored[2:]]
    loss, columns = _accumulate(student, [*scored[:2], *unscored])
    assert loss == alone
    assert [len(one.losses_N) > 0 for one in columns] == [True, True] + [False] * len(unscored)
    for ours, theirs in zip(_gradients(student), expected, strict=True):
        assert torch.equal(ours, theirs)


def test_step_without_any_score_is_skipped_and_leaves_the_weights(student: Student, scorer: FakeScorer) -> None:
    before = [parameter.clone() for parameter in student.model.parameters()]
    scored = [_without_scores(one) for one in _scored(student, scorer)]
    assert _apply(_update(student), scored, step=1) is None
    for ours, theirs in zip(student.model.parameters(), before, strict=True):
        assert torch.equal(ours, theirs)


def test_nan_stops_before_the_weights_change(student: Student, scorer: FakeScorer) -> None:
    scored = _scored(student, scorer)
    with torch.no_grad():
        student.model.base_model.get_parameter("norm.weight")[0] = math.inf
    before = [parameter.clone() for parameter in student.model.parameters()]
    with pytest.raises(TrainingStoppedError, match="step 4: the loss is nan"):
        _apply(_update(student), scored, step=4)
    for ours, theirs in zip(student.model.parameters(), before, strict=True):
        assert torch.equal(ours, theirs)


def test_learning_rate_warms_up_from_the_step_alone(student: Student, scorer: FakeScorer) -> None:
    scored = _scored(student, scorer, num_prompts=1)
    rates = []
    for step in (1, 2, 4, 9):
        result = _apply(_update(student, warmup_steps=4, lr=0.4), scored, step=step)
        assert result is not None
        rates.append(result.learning_rate)
    assert rates == pytest.approx([0.1, 0.2, 0.4, 0.4])


def test_student_equal_to_the_teacher_has_no_loss_and_full_agreement(scorer: FakeScorer) -> None:
    same = tiny_student(seed=1)
    loss, columns = _accumulate(same, _scored(same, scorer, top_k=64))
    assert loss == pytest.approx(0.0, abs=1e-6)
    assert all(one.overlaps_N.tolist() == [1.0] * len(one.overlaps_N) for one in columns)


def test_weights_make_a_weighted_mean(student: Student, scorer: FakeScorer) -> None:
    """A suffix without weight is as good as not there; the scale of the weights does not matter."""
    scored = _scored(student, scorer)
    first = [ScoredEpisode(episode=one.episode, scores=_first_two(one.scores)) for one in scored]
    expected, _ = _accumulate(student, first)
    gradients = _gradients(student)
    weights = [7.0 * (one.scores.positions_N < 2).astype(np.float64) for one in scored]
    loss, _ = _gradients_of(_update(student), scored, weights)
    assert loss == pytest.approx(expected, rel=1e-6)
    for ours, theirs in zip(_gradients(student), gradients, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-4)


def test_step_without_any_weight_is_skipped(student: Student, scorer: FakeScorer) -> None:
    scored = _scored(student, scorer)
    weights = [np.zeros(len(one.scores.positions_N)) for one in scored]
    assert _update(student).apply(one_task(scored, weighted_mean(weights)), step=1) is None


def _first_two(scores: ResponseScores) -> ResponseScores:
    return replace(
        scores,
        positions_N=scores.positions_N[:2],
        support_ids_NK=scores.support_ids_NK[:2],
        support_logprobs_NK=scores.support_logprobs_NK[:2],
        sampled_logprobs_N=scores.sampled_logprobs_N[:2],
        log_tail_mass_N=scores.log_tail_mass_N[:2],
    )


def _without_first(scores: ResponseScores) -> ResponseScores:
    return replace(
        scores,
        positions_N=scores.positions_N[1:],
        support_ids_NK=scores.support_ids_NK[1:],
        support_logprobs_NK=scores.support_logprobs_NK[1:],
        sampled_logprobs_N=scores.sampled_logprobs_N[1:],
        log_tail_mass_N=scores.log_tail_mass_N[1:],
    )


def _every_second(scores: ResponseScores) -> ResponseScores:
    return replace(
        scores,
        positions_N=scores.positions_N[::2],
        support_ids_NK=scores.support_ids_NK[::2],
        support_logprobs_NK=scores.support_logprobs_NK[::2],
        sampled_logprobs_N=scores.sampled_logprobs_N[::2],
        log_tail_mass_N=scores.log_tail_mass_N[::2],
    )


def _without_scores(one: ScoredEpisode) -> ScoredEpisode:
    scores = one.scores
    empty = replace(
        scores,
        status_T=np.full_like(scores.status_T, PositionStatus.NON_FINITE),
        positions_N=scores.positions_N[:0],
        support_ids_NK=scores.support_ids_NK[:0],
        support_logprobs_NK=scores.support_logprobs_NK[:0],
        sampled_logprobs_N=scores.sampled_logprobs_N[:0],
        log_tail_mass_N=scores.log_tail_mass_N[:0],
        entropies_N=None if scores.entropies_N is None else scores.entropies_N[:0],
    )
    return ScoredEpisode(episode=one.episode, scores=empty)
