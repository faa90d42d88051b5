"""Extrapolation position by position."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from preceptor_client.train.errors import InvalidWeightsError
from preceptor_client.train.learner.loss import Loss
from preceptor_client.train.objective.config import ObjectiveConfig
from preceptor_client.train.objective.extrapolation import CappedWhenSure, checked_strengths
from preceptor_client.train.objective.reference import Reference
from preceptor_client.train.objective.shaping import Shaping
from preceptor_client.train.student.student import Student
from preceptor_client.train.teacher.scored import ScoredEpisode, TeacherScores

from tests.unit.client.train.fake_scorer import FakeScorer
from tests.unit.client.train.objective.episodes import context, episode, logprobs_TV, random_turns, scored_by
from tests.unit.client.train.rollouts import scored_rollout
from tests.unit.client.train.tiny import tiny_student

RULE = "tests.unit.client.train.objective.own:GrowingStrength"


def test_each_position_has_the_target_of_its_own_strength(student: Student, scorer: FakeScorer) -> None:
    config = ObjectiveConfig(extrapolation_rule=RULE)
    start = tiny_student(seed=5)
    episodes = [episode(student, *random_turns(index, 3, 2)) for index in range(2)]
    scored = scored_by(scorer, episodes, objective=config)
    shaped = Shaping.of_settings(objective=config).shape(scored, context(student)).scored
    loss = Loss(student, config=config, temperature=1.0, reference=Reference(start, temperature=1.0))
    expected = []
    for one in scored:
        logs = [logprobs_TV(model, one.episode).double() for model in (student, scorer.teacher, start)]
        for row, position in enumerate(one.scores.positions_N):
            log_p_V, log_q_V, log_r_V = (each[position] for each in logs)
            ids = log_q_V.topk(6).indices
            strength = 1 + 0.1 * row
            log_p_K = log_p_V[ids].log_softmax(0)
            target_K = (strength * log_q_V[ids] - (strength - 1) * log_r_V[ids]).log_softmax(0)
            expected.append(float((log_p_K.exp() * (log_p_K - target_K)).sum()))
    assert loss.of(shaped).losses_N.tolist() == pytest.approx(expected, rel=2e-3, abs=2e-5)


def test_each_of_two_teachers_is_extrapolated_by_one_forward_of_the_reference(
    student: Student, scorer: FakeScorer
) -> None:
    config = ObjectiveConfig(extrapolation=1.5)
    start = tiny_student(seed=5)
    episodes = [episode(student, *random_turns(index, 3, 2)) for index in range(2)]
    # Supports of two widths.
    law, code = (scored_by(scorer, episodes, objective=config, top_k=top_k) for top_k in (6, 4))
    both = [
        replace(first, by_teacher=(_named("law", first, share=0.25), _named("code", second, share=0.75)))
        for first, second in zip(law, code, strict=True)
    ]
    reference = Reference(start, temperature=1.0)
    alone = Loss(student, config=config, temperature=1.0, reference=reference)
    expected_N = 0.25 * alone.of(law).losses_N + 0.75 * alone.of(code).losses_N
    forwards: list[object] = []
    start.module.register_forward_hook(lambda *_: forwards.append(None))
    joint = Loss(student, config=config, temperature=1.0, reference=reference, by_teacher=True)
    torch.testing.assert_close(joint.of(both).losses_N, expected_N, rtol=1e-4, atol=1e-6)
    assert len(forwards) == 1


def _named(name: str, one: ScoredEpisode, *, share: float) -> TeacherScores:
    shares_N = np.full(len(one.scores.positions_N), share)
    return TeacherScores(name=name, teacher=name, scores=one.scores, support=one.support, shares_N=shares_N)


def test_a_sure_teacher_is_not_extrapolated(student: Student) -> None:
    one = scored_rollout(num_positions=4)
    scores = replace(
        one.scores,
        support_logprobs_NK=np.log(np.array([[0.95, 0.01], [0.5, 0.4], [0.5, 0.4], [0.91, 0.01]], np.float32)),
        entropies_N=np.array([0.9, 0.9, 0.4, 0.9], np.float32),
    )
    rule = CappedWhenSure(strength=1.5)
    assert rule.strength([replace(one, scores=scores)], context(student))[0].tolist() == [1.0, 1.5, 1.0, 1.0]
    unknown = replace(scores, entropies_N=None)
    assert rule.strength([replace(one, scores=unknown)], context(student))[0].tolist() == [1.0, 1.5, 1.5, 1.0]
    weak = CappedWhenSure(strength=0.5).strength([replace(one, scores=scores)], context(student))
    assert weak[0].tolist() == [0.5] * 4


def test_strengths_must_be_above_0() -> None:
    with pytest.raises(InvalidWeightsError, match="strengths of the extrapolation of rollout 0 hold NaN, infinity or"):
        checked_strengths([np.array([1.0, 0.0])], scored=[scored_rollout(num_positions=2)])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"extrapolation_rule": RULE, "extrapolation": 1.25}, "leave one out"),
        (
            {"extrapolation_rule": RULE, "kind": "jsd"},
            "extrapolation_rule=.* needs kind=lsm or sampled_token",
        ),
        ({"extrapolation_rule": "cliff"}, "objective.extrapolation_rule='cliff' is not a rule of extrapolation"),
        ({"extrapolation_rule_options": {"strength": 2}}, "is for objective.extrapolation_rule: set that"),
        (
            {"extrapolation_rule": "capped_when_sure", "extrapolation_rule_options": {"strength": 9}},
            "objective.extrapolation_rule_options: capped_when_sure refuses them: strength=9.0 must be",
        ),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ObjectiveConfig.model_validate(settings)
