from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from preceptor.wire import SegmentationPolicy
from preceptor_client.train.errors import InvalidPartError, UnsuitableTeacherError
from preceptor_client.train.objective.config import CreditConfig, ObjectiveConfig
from preceptor_client.train.parts import PartConfig
from preceptor_client.train.run.config import RunConfig
from preceptor_client.train.start.objective_fit import check_objective, check_parts, objective_warnings
from preceptor_client.train.student.student import Student

from tests.unit.client.train.fake_scorer import REPORT, FakeScorer, agreement_with

Settings = dict[str, dict[str, Any]]  # Any: the leaves are whatever TOML holds


def _warnings(settings: Settings) -> tuple[str, ...]:
    config = RunConfig.model_validate(settings)
    return objective_warnings(
        config.objective,
        rollout=config.rollout,
        temperature=config.teacher.temperature,
        credit=config.credit,
    )


@pytest.mark.parametrize("support", ["student", "union"])
def test_a_teacher_that_scores_no_given_tokens_is_refused_for_their_support(
    settings: Settings, student: Student, scorer: FakeScorer, support: str
) -> None:
    config = RunConfig.model_validate(settings | {"objective": {"support": support}})
    agreement = agreement_with(scorer.teacher)
    check_objective(agreement, scorer.info().limits, objective=config.objective, student=student)
    capabilities = replace(agreement.teacher.capabilities, candidates=False)
    without = replace(agreement, teacher=replace(agreement.teacher, capabilities=capabilities))
    with pytest.raises(UnsuitableTeacherError, match=r"set objective\.support=teacher"):
        check_objective(without, scorer.info().limits, objective=config.objective, student=student)


def test_the_students_tokens_need_ids_that_correspond(settings: Settings, student: Student, scorer: FakeScorer) -> None:
    config = RunConfig.model_validate(settings | {"objective": {"support": "union"}})
    for agreement in (
        agreement_with(scorer.teacher, policy=SegmentationPolicy.CANONICAL),
        agreement_with(scorer.teacher, report=replace(REPORT, is_one_to_one=False)),
    ):
        with pytest.raises(UnsuitableTeacherError, match="needs ids that correspond one to one"):
            check_objective(agreement, scorer.info().limits, objective=config.objective, student=student)


def test_full_vocabulary_needs_a_server_that_gives_it(settings: Settings, student: Student, scorer: FakeScorer) -> None:
    config = RunConfig.model_validate(settings | {"objective": {"kind": "full_vocabulary"}})
    limits = scorer.info().limits
    with pytest.raises(UnsuitableTeacherError, match=r"limit is 64: start it with --limits\.max-top-k=259"):
        check_objective(agreement_with(scorer.teacher), limits, objective=config.objective, student=student)
    wide = replace(limits, max_top_k=259)
    check_objective(agreement_with(scorer.teacher), wide, objective=config.objective, student=student)
    strangers = agreement_with(scorer.teacher, report=replace(REPORT, is_one_to_one=False))
    with pytest.raises(UnsuitableTeacherError, match="correspond one to one"):
        check_objective(strangers, wide, objective=config.objective, student=student)


@pytest.mark.parametrize("kind", ["sampled_token", "ema_pg"])
def test_estimates_by_sampling_are_warned_of_where_the_sampling_is_cut(settings: Settings, kind: str) -> None:
    settings["objective"] = {"kind": kind}
    settings["rollout"]["top_p"] = 1.0
    assert _warnings(settings) == ()
    settings["rollout"]["top_p"] = 0.9
    (warning,) = _warnings(settings)
    assert "rollout.top_p=0.9" in warning
    settings["rollout"] |= {"top_p": 1.0, "temperature": 0.5}
    (warning,) = _warnings(settings)
    assert "rollout.temperature=0.5" in warning


def test_a_loss_that_collapses_is_warned_of(settings: Settings) -> None:
    settings["objective"] = {"kind": "truncated"}
    (warning,) = _warnings(settings)
    assert "known to collapse" in warning


def test_credit_that_compares_responses_is_warned_of_where_there_is_one(settings: Settings) -> None:
    settings["credit"] = {"kind": "grpo"}
    assert _warnings(settings) == ()
    settings["rollout"]["responses_per_prompt"] = 1
    (warning,) = _warnings(settings)
    assert "raise rollout.responses_per_prompt" in warning
    settings["credit"] = {"kind": "teacher_gap"}
    assert _warnings(settings) == ()


def test_parts_that_cannot_be_made_are_told_by_their_keys_at_start(settings: Settings) -> None:
    config = RunConfig.model_validate(settings)
    with pytest.raises(InvalidPartError, match=r"weights\.kind='frist_tokens' is not a rule of weights: write one of"):
        check_parts(objective=config.objective, weights=PartConfig(kind="frist_tokens"), credit=None)
    with pytest.raises(ValueError, match=r"objective\.coefficient=0 without \[credit\] leaves nothing"):
        check_parts(objective=ObjectiveConfig(coefficient=0), weights=None, credit=None)
    check_parts(objective=ObjectiveConfig(coefficient=0), weights=None, credit=CreditConfig(kind="grpo"))
    with pytest.raises(ValueError, match=r"credit\.kind='gppo' is not a credit: write one of grpo, teacher_gap"):
        CreditConfig(kind="gppo")
