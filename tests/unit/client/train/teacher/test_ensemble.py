from __future__ import annotations

# N = scored positions, K = support size, M = teachers
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
import torch
from preceptor.wire import PositionStatus
from preceptor_client.errors import InvalidRequestError
from preceptor_client.train.errors import (
    InvalidDataError,
    InvalidPartError,
    InvalidWeightsError,
    UnsuitableTeacherError,
)
from preceptor_client.train.learner.loss import Loss
from preceptor_client.train.objective.config import ObjectiveConfig
from preceptor_client.train.rollout.episode import Episode
from preceptor_client.train.start.ensemble_fit import check_ensemble
from preceptor_client.train.student.student import Student
from preceptor_client.train.teacher.config import TeacherConfig
from preceptor_client.train.teacher.ensemble import Ensemble, ShareRule
from preceptor_client.train.teacher.questions import Questions
from preceptor_client.train.teacher.scoring import Selection
from preceptor_client.train.teacher.support import TeacherSupport
from preceptor_client.types import ResponseScores

from tests.unit.client.train.fake_scorer import REPORT, FakeScorer, agreement_with
from tests.unit.client.train.objective.episodes import episode
from tests.unit.client.train.runs import Settings, task_of
from tests.unit.client.train.tiny import tiny_student

TOP_K = 5
SHARES = {"law": 0.75, "code": 0.25}


@pytest.fixture
def teachers() -> dict[str, FakeScorer]:
    return {name: FakeScorer(teacher=tiny_student(seed=seed), name=name) for name, seed in (("law", 1), ("code", 2))}


@pytest.fixture
def episodes(student: Student) -> list[Episode]:
    return [
        episode(student, ("student", (5, 6, 7, 8)), slot=0),
        episode(student, ("student", (9, 10)), ("environment", (11, 12)), ("student", (13,)), slot=1),
    ]


def ensemble(
    teachers: Mapping[str, FakeScorer],
    *,
    is_mixture: bool = True,
    rule: ShareRule | None = None,
    num_student_tokens: int = 0,
) -> Ensemble:
    questions = {
        name: Questions(
            scorer,
            config=TeacherConfig(address="a:1", name=name),
            agreement=agreement_with(scorer.teacher),
            top_k=TOP_K,
            num_student_tokens=num_student_tokens,
            vocabulary_size=259,
        )
        for name, scorer in teachers.items()
    }
    selection = Selection(rule=TeacherSupport(), min_support=2, vocabulary_size=259)
    return Ensemble(questions, selection=selection, shares=SHARES, rule=rule, is_mixture=is_mixture, task="both")


def dense(scorer: FakeScorer, one: Episode) -> npt.NDArray[np.float64]:
    """The teacher's whole distribution before each token of the response, in float64."""
    ids = torch.tensor([[*one.prompt_ids, *one.response_ids]])
    with torch.no_grad():
        logits_TV = scorer.teacher.model(ids, use_cache=False).logits[0, len(one.prompt_ids) - 1 : -1].double()
    logprobs: npt.NDArray[np.float64] = torch.log_softmax(logits_TV, dim=1).numpy()
    return logprobs


def test_mixture_of_the_answers_is_the_mixture_of_the_models(
    teachers: dict[str, FakeScorer], episodes: list[Episode]
) -> None:
    scoring = ensemble(teachers)
    scoring.submit(episodes, name="step-1")
    found = scoring.gather()
    assert [one.task for one in found] == ["both", "both"]
    assert [one.scores.positions_N.tolist() for one in found] == [[0, 1, 2, 3], [0, 1, 4]]
    for one in found:
        mixed_TV = np.log(sum(share * np.exp(dense(teachers[name], one.episode)) for name, share in SHARES.items()))
        rows_NV = mixed_TV[one.scores.positions_N]
        expected_NK = np.take_along_axis(rows_NV, one.scores.support_ids_NK.astype(np.int64), axis=1)
        np.testing.assert_allclose(one.scores.support_logprobs_NK, expected_NK, atol=2e-5)
        sampled_N = rows_NV[np.arange(len(rows_NV)), one.sampled_ids_N]
        np.testing.assert_allclose(one.scores.sampled_logprobs_N, sampled_N, atol=2e-5)
        np.testing.assert_allclose(np.exp(one.scores.log_tail_mass_N), 1 - np.exp(expected_NK).sum(axis=1), atol=2e-5)
        assert [(teacher.name, teacher.teacher) for teacher in one.by_teacher] == [("law", "law"), ("code", "code")]
        assert all((teacher.shares_N == SHARES[teacher.name]).all() for teacher in one.by_teacher)


def test_an_episode_without_a_token_to_learn_from_is_mixed_with_the_rest(
    student: Student, teachers: dict[str, FakeScorer], episodes: list[Episode]
) -> None:
    scoring = ensemble(teachers)
    scoring.submit([*episodes, episode(student, ("masked", (5, 6)), slot=2)], name="step-1")
    found = scoring.gather()
    assert [one.scores.positions_N.tolist() for one in found] == [[0, 1, 2, 3], [0, 1, 4], []]
    assert [len(call.responses) for call in teachers["code"].calls] == [1, 1], "nothing is asked about it"


def test_a_mixture_takes_no_more_of_the_students_tokens_than_were_asked_about(
    student: Student, teachers: dict[str, FakeScorer]
) -> None:
    one = episode(student, ("student", (5, 6, 7, 8)), num_top_ids=4)
    scoring = ensemble(teachers, num_student_tokens=2)
    scoring.submit([one], name="step-1")
    (found,) = scoring.gather()
    mixed_TV = np.log(sum(share * np.exp(dense(teachers[name], one)) for name, share in SHARES.items()))
    assert one.student.top_ids_TK is not None
    asked_TC = one.student.top_ids_TK[:, :2]
    assert found.scores.candidate_ids_NC is not None
    assert found.scores.candidate_logprobs_NC is not None
    np.testing.assert_array_equal(found.scores.candidate_ids_NC, asked_TC)
    np.testing.assert_allclose(
        found.scores.candidate_logprobs_NC, np.take_along_axis(mixed_TV, asked_TC, axis=1), atol=2e-5
    )
    (call,) = teachers["code"].calls
    assert call.options["candidate_ids"] is not None
    (asked,) = call.options["candidate_ids"]
    assert asked is not None
    assert asked.shape == (4, TOP_K + 2)


def test_divergences_to_each_teacher_add_up_by_their_shares(
    student: Student, teachers: dict[str, FakeScorer], episodes: list[Episode]
) -> None:
    scoring = ensemble(teachers, is_mixture=False)
    scoring.submit(episodes, name="step-1")
    found = scoring.gather()
    with torch.no_grad():
        loss = Loss(student, config=ObjectiveConfig(), temperature=1.0, by_teacher=True)
        ours_N = loss.of(found).losses_N.numpy()
    expected: list[float] = []
    for one in found:
        own_TV = dense(FakeScorer(teacher=student), one.episode)
        for position in one.scores.positions_N:
            total = 0.0
            for name, share in SHARES.items():
                theirs_V = dense(teachers[name], one.episode)[position]
                top = np.argsort(-theirs_V)[:TOP_K]
                log_p, log_q = own_TV[position][top], theirs_V[top]
                log_p, log_q = log_p - np.log(np.exp(log_p).sum()), log_q - np.log(np.exp(log_q).sum())
                total += share * float((np.exp(log_p) * (log_p - log_q)).sum())
            expected.append(total)
    np.testing.assert_allclose(ours_N, expected, atol=1e-5)


class ByPosition:
    """The first teacher alone at even positions, the second at odd ones."""

    def shares(self, episode: Episode, answers: Mapping[str, ResponseScores]) -> dict[str, npt.NDArray[np.float64]]:
        is_even_N = answers["law"].positions_N % 2 == 0
        return {"law": 3.0 * is_even_N, "code": 2.0 * ~is_even_N}


def test_a_rule_weighs_teachers_position_by_position(teachers: dict[str, FakeScorer], episodes: list[Episode]) -> None:
    scoring = ensemble(teachers, rule=ByPosition())
    scoring.submit(episodes[:1], name="step-1")
    (one,) = scoring.gather()
    assert [teacher.shares_N.tolist() for teacher in one.by_teacher] == [[1, 0, 1, 0], [0, 1, 0, 1]]
    for row, position in enumerate(one.scores.positions_N):
        only = teachers["law" if position % 2 == 0 else "code"]
        expected_V = dense(only, one.episode)[position]
        np.testing.assert_allclose(
            one.scores.support_logprobs_NK[row], expected_V[one.scores.support_ids_NK[row].astype(int)], atol=2e-5
        )


@pytest.mark.parametrize("is_mixture", [True, False])
def test_a_position_counts_that_all_teachers_scored(
    teachers: dict[str, FakeScorer], episodes: list[Episode], is_mixture: bool
) -> None:
    lost = PositionStatus.MISALIGNED
    teachers["law"].status_of = lambda position: lost if position == 1 else PositionStatus.OK
    teachers["code"].status_of = lambda position: lost if position == 3 else PositionStatus.OK
    scoring = ensemble(teachers, is_mixture=is_mixture)
    scoring.submit(episodes, name="step-1")
    assert [one.scores.positions_N.tolist() for one in scoring.gather()] == [[0, 2], [0, 4]]


@pytest.mark.parametrize("is_mixture", [True, False])
@pytest.mark.parametrize("refusing", ["law", "code"])
def test_what_one_teacher_refuses_is_left_out_for_all(
    teachers: dict[str, FakeScorer], episodes: list[Episode], is_mixture: bool, refusing: str
) -> None:
    refusal = InvalidRequestError("prompt: no", field="prompt", reason="X")
    told: list[InvalidDataError] = []
    teachers[refusing].error_at = lambda index: refusal if index == 0 else None
    scoring = ensemble(teachers, is_mixture=is_mixture)
    scoring.submit(episodes, name="step-1")
    found = scoring.gather(on_refused=told.append)
    assert [one.episode.slot for one in found] == [1]
    assert len(told) == 1
    scoring.submit(episodes, name="step-2")
    assert [one.episode.slot for one in scoring.gather()] == [0, 1], "the next step begins anew"


@pytest.mark.parametrize(
    ("shares", "error", "why"),
    [
        ({"law": [1.0] * 4}, InvalidPartError, r"teacher_weights: Fixed\.shares failed: KeyError\('code'\)"),
        ({"law": [1.0] * 3, "code": [1.0] * 3}, InvalidWeightsError, r"gave shape \(3,\) for 4 positions"),
        ({"law": [1.0] * 4, "code": [-1.0] * 4}, InvalidWeightsError, "at least 0"),
        ({"law": [0.0] * 4, "code": [0.0] * 4}, InvalidWeightsError, "not all 0 at a position"),
        ({"law": [1.0] * 4, "code": [float("nan")] * 4}, InvalidWeightsError, "finite"),
    ],
)
def test_shares_that_do_not_fit_are_named(
    teachers: dict[str, FakeScorer],
    episodes: list[Episode],
    shares: dict[str, list[float]],
    error: type[Exception],
    why: str,
) -> None:
    class Fixed:
        def shares(self, episode: Episode, answers: Mapping[str, ResponseScores]) -> dict[str, npt.NDArray[np.float64]]:
            return {name: np.array(column) for name, column in shares.items()}

    scoring = ensemble(teachers, rule=Fixed())
    scoring.submit(episodes[:1], name="step-1")
    with pytest.raises(error, match=why):
        scoring.gather()


def test_teachers_of_unlike_vocabularies_are_no_mixture(settings: Settings, teachers: dict[str, FakeScorer]) -> None:
    settings["teachers"] = {name: {"address": f"{name}:1"} for name in teachers}
    settings["tasks"] = {"both": {"teachers": ["law", "code"]}}
    task = task_of(settings)
    fitting = {name: agreement_with(scorer.teacher) for name, scorer in teachers.items()}
    check_ensemble(task, fitting, scorers=teachers)
    strange = fitting | {"code": agreement_with(teachers["code"].teacher, report=replace(REPORT, is_one_to_one=False))}
    with pytest.raises(
        UnsuitableTeacherError, match=r"tasks\.both\.combine=mixture .* teacher 'code' do not correspond"
    ):
        check_ensemble(task, strange, scorers=teachers)
    settings["tasks"]["both"]["combine"] = "divergences"
    check_ensemble(task_of(settings), strange, scorers=teachers)


def test_a_mixture_asks_no_teacher_about_more_ids_than_it_takes(
    settings: Settings, teachers: dict[str, FakeScorer]
) -> None:
    settings["teachers"] = {name: {"address": f"{name}:1"} for name in teachers}
    settings["tasks"] = {"both": {"teachers": ["law", "code"], "teacher": {"top_k": 65}}}
    fitting = {name: agreement_with(scorer.teacher) for name, scorer in teachers.items()}
    with pytest.raises(UnsuitableTeacherError, match=r"asks teacher 'code' about 65 ids .* limit is 64: lower"):
        check_ensemble(task_of(settings), fitting, scorers=teachers)
