"""Rewards, weights and the KL together: the gradient of a step against whole distributions in float64."""

# N = positions of all episodes, V = vocabulary, K = support size

from __future__ import annotations

import copy
import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from preceptor_client.train.learner.config import OptimizerConfig
from preceptor_client.train.learner.learner import Gradients
from preceptor_client.train.learner.loss import Loss
from preceptor_client.train.objective.config import CreditConfig, ObjectiveConfig
from preceptor_client.train.objective.grpo import Grpo
from preceptor_client.train.objective.shaping import ShapedStep, Shaping
from preceptor_client.train.student.student import Student
from preceptor_client.train.teacher.scored import ScoredEpisode

from tests.unit.client.train.assembled import learner_for
from tests.unit.client.train.fake_scorer import FakeScorer
from tests.unit.client.train.objective.episodes import context, episode, random_turns, scored_by
from tests.unit.client.train.tiny import tiny_student

TEMPERATURE, CLIP_LOW, CLIP_HIGH, DUAL_CLIP = 0.8, 0.2, 0.3, 1.5
REWARDS = ((1.0, 0.0, 0.25), (0.0, 0.0, 3.0))
OBJECTIVES = {"lsm": {"kind": "lsm"}, "tail_bucket": {"kind": "tail_bucket", "support": "union"}}


def _weigh(scored: Sequence[ScoredEpisode]) -> list[np.ndarray]:
    return [1.0 / (1.0 + one.scores.positions_N) for one in scored]


def _scored(scorer: FakeScorer, objective: ObjectiveConfig) -> list[ScoredEpisode]:
    """Written by another student, so that ratios are clipped; two prompts, three responses each, of two turns."""
    writer = tiny_student(seed=3)
    episodes = [
        episode(
            writer,
            *random_turns(10 * slot + sample, 3 + sample, 4),
            slot=slot,
            sample=sample,
            reward=reward,
            prompt_ids=(7, 11, 13 + slot),
            temperature=TEMPERATURE,
            num_top_ids=6,
        )
        for slot, rewards in enumerate(REWARDS)
        for sample, reward in enumerate(rewards)
    ]
    return scored_by(scorer, episodes, objective=objective, temperature=TEMPERATURE)


def _advantage(reward: float, among: Sequence[float]) -> float:
    mean = sum(among) / len(among)
    deviation = math.sqrt(sum((one - mean) ** 2 for one in among) / (len(among) - 1))
    return (reward - mean) / (deviation + 1e-6)


def _members(objective: ObjectiveConfig, log_p_V: torch.Tensor, log_q_V: torch.Tensor) -> list[int]:
    top_q = set(log_q_V.topk(6).indices.tolist())
    return sorted(top_q | set(log_p_V.topk(6).indices.tolist()) if objective.support == "union" else top_q)


def _divergence(
    objective: ObjectiveConfig, log_p_V: torch.Tensor, log_q_V: torch.Tensor, ids: list[int]
) -> torch.Tensor:
    p_K, q_K = log_p_V[ids].exp(), log_q_V[ids].exp()
    if objective.kind == "lsm":
        p_K, q_K = p_K / p_K.sum(), q_K / q_K.sum()
        return (p_K * (p_K / q_K).log()).sum()
    tail = (1 - p_K.sum()) * ((1 - p_K.sum()) / (1 - q_K.sum())).log()
    return (p_K * (p_K / q_K).log()).sum() + tail


def _surrogate(ratio: torch.Tensor, advantage: float) -> torch.Tensor:
    gain = torch.minimum(ratio * advantage, ratio.clamp(1 - CLIP_LOW, 1 + CLIP_HIGH) * advantage)
    return -(gain.clamp(min=DUAL_CLIP * advantage) if advantage < 0 else gain)


def _oracle(
    student: Student, scorer: FakeScorer, objective: ObjectiveConfig, *, is_weighted: bool
) -> tuple[float, list[torch.Tensor], list[float]]:
    """The step's loss in float64 from full logits, its gradient, and the ratios."""
    model, teacher, writer = (
        copy.deepcopy(one.model).double() for one in (student, scorer.teacher, tiny_student(seed=3))
    )
    kl, credit = [], []
    weights: list[float] = []
    ratios: list[float] = []
    for slot, rewards in enumerate(REWARDS):
        for sample, reward in enumerate(rewards):
            prompt = [7, 11, 13 + slot]
            turns = random_turns(10 * slot + sample, 3 + sample, 4)
            response = [token for _, ids in turns for token in ids]
            is_own = [author == "student" for author, ids in turns for _ in ids]
            logs = []
            for one in (model, teacher, writer):
                logits_TV = one(torch.tensor([prompt + response]), use_cache=False).logits[0, len(prompt) - 1 : -1]
                logs.append(torch.log_softmax(logits_TV / TEMPERATURE, dim=1))
            for t, (token, own) in enumerate(zip(response, is_own, strict=True)):
                if not own:
                    continue
                log_p_V, log_q_V, log_old_V = logs[0][t], logs[1][t].detach(), logs[2][t].detach()
                ids = _members(objective, log_old_V, log_q_V)
                kl.append(_divergence(objective, log_p_V, log_q_V, ids))
                ratio = (log_p_V[token] - log_old_V[token]).exp()
                credit.append(_surrogate(ratio, _advantage(reward, rewards)))
                weights.append(1 / (1 + t))
                ratios.append(float(ratio.detach()))
    kl_N, credit_N, weights_N = torch.stack(kl), torch.stack(credit), torch.tensor(weights, dtype=torch.float64)
    of_credit = (credit_N * weights_N).sum() / weights_N.sum() if is_weighted else credit_N.mean()
    loss = objective.coefficient * (kl_N * weights_N).sum() / weights_N.sum() + 0.7 * of_credit
    return float(loss.detach()), list(torch.autograd.grad(loss, list(model.parameters()))), ratios


def _accumulate(
    student: Student,
    shaped: ShapedStep,
    *,
    objective: ObjectiveConfig,
    credit: CreditConfig,
    micro_batch_size: int = 16,
) -> Gradients:
    """As a run does; the gradients stand in the student's parameters then."""
    learner = learner_for(
        student,
        config=OptimizerConfig(learning_rate=1e-3, micro_batch_size=micro_batch_size),
        loss=Loss(student, config=objective, temperature=TEMPERATURE, credit=credit),
    )
    return learner.accumulate_gradients({"": shaped})


@pytest.mark.parametrize("micro_batch_size", [16, 2])
@pytest.mark.parametrize("is_weighted", [False, True])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_gradient_of_rewards_and_divergence_equals_a_dense_computation_in_float64(
    student: Student, scorer: FakeScorer, name: str, is_weighted: bool, micro_batch_size: int
) -> None:
    objective = ObjectiveConfig.model_validate(OBJECTIVES[name] | {"coefficient": 0.4})
    credit = CreditConfig(
        kind="grpo",
        coefficient=0.7,
        weighted=is_weighted,
        clip_range=CLIP_LOW,
        clip_high=CLIP_HIGH,
        dual_clip=DUAL_CLIP,
    )
    expected, gradients, ratios = _oracle(student, scorer, objective, is_weighted=is_weighted)
    assert min(ratios) < 1 - CLIP_LOW
    assert max(ratios) > DUAL_CLIP
    shaping = Shaping.of_settings(objective=objective, credit=credit, weigh=_weigh)
    shaped = shaping.shape(_scored(scorer, objective), context(student))
    found = _accumulate(student, shaped, objective=objective, credit=credit, micro_batch_size=micro_batch_size)
    # fp32 through two layers.
    assert found.loss == pytest.approx(expected, rel=1e-4)
    scale = max(float(gradient.abs().max()) for gradient in gradients)
    for parameter, gradient in zip(student.model.parameters(), gradients, strict=True):
        assert parameter.grad is not None
        torch.testing.assert_close(parameter.grad.double(), gradient, rtol=1e-3, atol=1e-4 * scale)


def test_with_coefficient_0_the_credit_alone_moves_the_student_and_the_divergence_is_measured(
    student: Student, scorer: FakeScorer
) -> None:
    """Rows without a support count for the credit, and have no measured loss."""
    objective = ObjectiveConfig(coefficient=0.0)
    credit = CreditConfig(kind="grpo", clip_range=CLIP_LOW, clip_high=CLIP_HIGH, dual_clip=DUAL_CLIP)
    scorer.support_of = lambda position: 1 if position == 1 else None
    scored = _scored(scorer, objective)
    assert sum(len(one.scores.positions_N) for one in scored) == 48
    shaped = Shaping.of_settings(objective=objective, credit=credit).shape(scored, context(student))
    scorer.support_of = lambda position: None
    expected, gradients, _ = _oracle(student, scorer, objective, is_weighted=False)
    result = _accumulate(student, shaped, objective=objective, credit=credit)
    assert result.loss == result.credit_loss == pytest.approx(expected / 0.7, rel=1e-4)
    scale = max(float(gradient.abs().max()) for gradient in gradients)
    for parameter, gradient in zip(student.model.parameters(), gradients, strict=True):
        assert parameter.grad is not None
        torch.testing.assert_close(parameter.grad.double(), gradient / 0.7, rtol=1e-3, atol=1e-4 * scale)
    for one, columns in zip(scored, result.columns, strict=True):
        assert np.isnan(columns.losses_N).tolist() == (one.scores.positions_N == 1).tolist()


def test_credit_without_clips_in_the_loss_is_refused(student: Student, scorer: FakeScorer) -> None:
    objective = ObjectiveConfig()
    shaped = Shaping(reduction=objective.make_reduction(), credit=Grpo()).shape(
        _scored(scorer, objective), context(student)
    )
    with pytest.raises(ValueError, match="the loss was made without"):
        Loss(student, config=objective, temperature=TEMPERATURE).of(shaped.scored)
