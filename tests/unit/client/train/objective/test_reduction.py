"""Reductions by name, against sums written out; and the terms of a step."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from preceptor_client.train.errors import InvalidPartError, InvalidWeightsError
from preceptor_client.train.objective.config import CreditConfig, ObjectiveConfig
from preceptor_client.train.objective.reduction import Reduction, ReductionKind, Term
from preceptor_client.train.objective.shaping import Shaping
from preceptor_client.train.parts import PartConfig
from preceptor_client.train.student.student import Student
from preceptor_client.train.teacher.scored import ScoredEpisode

from tests.unit.client.train.fake_scorer import FakeScorer
from tests.unit.client.train.objective.episodes import context, episode, random_turns, scored_by
from tests.unit.client.train.rollouts import scored_rollout

OWN = "tests.unit.client.train.objective.own"
NUMS = (3, 0, 1)
WEIGHTS = [np.array([0.0, 1.0, 3.0]), np.zeros(0), np.array([0.5])]
LOSSES = [np.array([2.0, 4.0, 8.0]), np.zeros(0), np.array([16.0])]


def _value(term: Term) -> float:
    return sum(float(w @ losses) for w, losses in zip(term.weights, LOSSES, strict=True)) / term.denominator


@pytest.mark.parametrize(
    ("kind", "scale", "expected"),
    [
        # (0 * 2 + 1 * 4 + 3 * 8 + 0.5 * 16) / (0 + 1 + 3 + 0.5)
        ("position_mean", None, 36 / 4.5),
        # weights / 3 in the first response
        ("sequence_mean", None, (28 / 3 + 8) / (4 / 3 + 0.5)),
        # four scored positions
        ("position_scaled", None, 36 / 4),
        ("fixed_scale", 10.0, 36 / 10),
    ],
)
def test_loss_of_a_step_is_the_sum_over_the_denominator_of_its_name(
    kind: ReductionKind, scale: float | None, expected: float
) -> None:
    reduction = Reduction(kind=kind, scale=scale)
    assert _value(reduction.term(NUMS, given=WEIGHTS)) == pytest.approx(expected)
    assert _value(reduction.term(NUMS, given=WEIGHTS, coefficient=0.3)) == pytest.approx(0.3 * expected)


def test_the_scale_of_weights_counts_where_the_denominator_does_not_follow_it() -> None:
    twice = [2 * weights_N for weights_N in WEIGHTS]
    for kind, factor in (("position_mean", 1), ("sequence_mean", 1), ("position_scaled", 2), ("fixed_scale", 2)):
        reduction = ObjectiveConfig.model_validate(
            {"reduction": kind} | ({"reduction_scale": 7.0} if kind == "fixed_scale" else {})
        ).make_reduction()
        ratio = _value(reduction.term(NUMS, given=twice)) / _value(reduction.term(NUMS, given=WEIGHTS))
        assert ratio == pytest.approx(factor)


def test_a_measurement_has_the_mean_in_place_of_a_scale_that_belongs_to_a_step() -> None:
    assert Reduction(kind="fixed_scale", scale=7.0).of_measurement == Reduction(kind="position_mean")
    assert Reduction(kind="sequence_mean").of_measurement == Reduction(kind="sequence_mean")


def test_fixed_scale_and_its_number_come_together() -> None:
    for settings in ({"reduction": "fixed_scale"}, {"reduction_scale": 5.0}):
        with pytest.raises(ValueError, match=r"objective\.reduction_scale, a number of positions, go together"):
            ObjectiveConfig.model_validate(settings)


def _weigh(scored: Sequence[ScoredEpisode]) -> list[np.ndarray]:
    return [np.arange(1.0, 1 + len(one.scores.positions_N)) for one in scored]


def test_weights_multiply_the_objectives_term_and_the_credits_where_it_is_said(
    student: Student, scorer: FakeScorer
) -> None:
    scored = scored_by(scorer, [episode(student, *random_turns(0, 3))])
    for is_weighted, expected in ((False, [1.0, 1.0, 1.0]), (True, [1.0, 2.0, 3.0])):
        credit = CreditConfig(kind="teacher_gap", weighted=is_weighted, coefficient=0.5)
        shaping = Shaping.of_settings(objective=ObjectiveConfig(), credit=credit, weigh=_weigh)
        terms = shaping.shape(scored, context(student)).terms
        assert terms.objective.weights[0].tolist() == [1.0, 2.0, 3.0]
        assert terms.objective.denominator == 6.0
        assert terms.credit is not None
        assert terms.credit.weights[0].tolist() == [0.5 * one for one in expected]
        assert terms.credit.denominator == sum(expected)
        assert terms.num_positions == 3


def test_weights_are_a_part_of_the_settings(student: Student, scorer: FakeScorer) -> None:
    scored = scored_by(scorer, [episode(student, *random_turns(0, 2, 2, 1))])
    for kind, options, expected in (
        (f"{OWN}:EvenTurns", {}, [2.0, 2.0, 0.0, 0.0, 2.0]),
        # The student's tokens count, not the environment's between them.
        ("first_tokens", {"num_tokens": 3}, [1.0, 1.0, 1.0, 0.0, 0.0]),
    ):
        shaping = Shaping.of_settings(objective=ObjectiveConfig(), weights=PartConfig(kind=kind, options=options))
        assert shaping.shape(scored, context(student)).terms.objective.weights[0].tolist() == expected


def test_a_rule_of_weights_that_goes_wrong_is_named(student: Student, scorer: FakeScorer) -> None:
    scored = scored_by(scorer, [episode(student, *random_turns(0, 2))])
    weights = PartConfig(kind=f"{OWN}:FailingWeights")
    failing = Shaping.of_settings(objective=ObjectiveConfig(), weights=weights)
    with pytest.raises(InvalidPartError, match=r"weights.kind: FailingWeights.weigh failed: IndexError\('step 4 has 1"):
        failing.shape(scored, context(student, step=4))
    negative = Shaping.of_settings(objective=ObjectiveConfig(), weigh=lambda _: [-np.ones(2)])
    with pytest.raises(InvalidWeightsError, match="position weights of rollout 0 hold NaN, infinity or a number below"):
        negative.shape(scored, context(student))
    with pytest.raises(ValueError, match="leave one out"):
        Shaping.of_settings(objective=ObjectiveConfig(), weights=weights, weigh=_weigh)
    with pytest.raises(InvalidPartError, match=r"weights\.options: first_tokens refuses them: num_tokens=0 must be"):
        Shaping.of_settings(
            objective=ObjectiveConfig(), weights=PartConfig(kind="first_tokens", options={"num_tokens": 0})
        )


def test_a_step_without_weight_and_without_credit_is_empty(student: Student) -> None:
    scored = [scored_rollout(num_positions=2)]
    nothing = Shaping(reduction=Reduction(), weights=None, coefficient=0.0)
    assert nothing.shape(scored, context(student)).terms.is_empty
    assert not Shaping(reduction=Reduction()).shape(scored, context(student)).terms.is_empty
    assert Shaping(reduction=Reduction()).shape([], context(student)).terms.is_empty
