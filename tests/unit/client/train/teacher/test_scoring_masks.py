"""What is asked of the teacher about episodes of several turns: masks, groups that share a prompt, supports once."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from preceptor.wire import PositionStatus, TokenArray
from preceptor_client.train.errors import InvalidPartError
from preceptor_client.train.objective.config import ObjectiveConfig
from preceptor_client.train.objective.targets import targets_of
from preceptor_client.train.rollout.episode import Episode
from preceptor_client.train.student.student import Student
from preceptor_client.train.teacher.config import TeacherConfig
from preceptor_client.train.teacher.questions import Questions
from preceptor_client.train.teacher.scored import ScoredEpisode
from preceptor_client.train.teacher.scoring import OneTeacher, Selection
from preceptor_client.train.teacher.support import Support, SupportRule, TeacherSupport
from preceptor_client.types import ResponseScores

from tests.unit.client.train.fake_scorer import FakeScorer, agreement_with
from tests.unit.client.train.objective.episodes import episode, logprobs_TV, scored_by
from tests.unit.client.train.rollouts import scored_rollout

ONE_TURN = ("student", [5, 6])
TWO_TURNS = (("student", [5, 6]), ("environment", [8, 9]), ("student", [7]))


class CountingSupport:
    """The teacher's, and how often it was asked for."""

    needs_student_tokens = False

    def __init__(self) -> None:
        self.calls: Counter[int] = Counter()

    def select(self, scores: ResponseScores, *, sampled_ids_N: TokenArray) -> Support:
        self.calls[len(sampled_ids_N)] += 1
        return TeacherSupport().select(scores, sampled_ids_N=sampled_ids_N)


class Wrong:
    """Gives what it is told to."""

    needs_student_tokens = False

    def __init__(self, **columns: np.ndarray) -> None:
        self._columns = columns

    def select(self, scores: ResponseScores, *, sampled_ids_N: TokenArray) -> Support:
        support = TeacherSupport().select(scores, sampled_ids_N=sampled_ids_N)
        names = ("ids_NK", "teacher_logprobs_NK", "teacher_tail_N", "is_sampled_inside_N")
        return Support(**{name: self._columns.get(name, getattr(support, name)) for name in names})


class Failing:
    needs_student_tokens = False

    def select(self, scores: ResponseScores, *, sampled_ids_N: TokenArray) -> Support:
        raise ZeroDivisionError("no")


def _scored(
    scorer: FakeScorer, rule: SupportRule, episodes: list[Episode], *, min_support: int = 2
) -> list[ScoredEpisode]:
    questions = Questions(
        scorer,
        config=TeacherConfig(address="a:1"),
        top_k=6,
        num_student_tokens=0,
        agreement=agreement_with(scorer.teacher),
        vocabulary_size=259,
    )
    scoring = OneTeacher(questions, selection=Selection(rule=rule, min_support=min_support, vocabulary_size=259))
    scoring.submit(episodes, name="step-1")
    return scoring.gather()


def test_only_the_students_own_tokens_are_scored_and_what_stands_between_is_context(
    student: Student, scorer: FakeScorer
) -> None:
    (one,) = scored_by(scorer, [episode(student, *TWO_TURNS)])
    assert scorer.calls[0].options["score_masks"] == [[True, True, False, False, True]]
    assert scorer.calls[0].responses == [[5, 6, 8, 9, 7]]
    assert one.scores.positions_N.tolist() == [0, 1, 4]
    assert one.sampled_ids_N.tolist() == [5, 6, 7]
    teacher_TV = logprobs_TV(scorer.teacher, one.episode)
    expected = [float(teacher_TV[t, one.episode.response_ids[t]]) for t in (0, 1, 4)]
    assert one.scores.sampled_logprobs_N.tolist() == pytest.approx(expected)


def test_a_request_that_scores_every_token_says_nothing_of_masks(student: Student, scorer: FakeScorer) -> None:
    scored_by(scorer, [episode(student, ONE_TURN)])
    assert "score_masks" not in scorer.calls[0].options


def test_a_group_is_the_episodes_of_a_slot_that_share_a_prompt_and_all_come_back_in_order(
    student: Student, scorer: FakeScorer
) -> None:
    places = [
        (0, 0, 0, (7, 11)),
        (0, 0, 1, (7, 11, 5)),
        (0, 1, 0, (7, 11)),
        (0, 1, 1, (7, 11, 9)),
        (1, 0, 0, (7, 11)),
        (0, 2, 0, (7, 11)),
    ]
    episodes = [
        episode(student, ("student", [20 + index, 5]), slot=slot, sample=sample, part=part, prompt_ids=prompt)
        for index, (slot, sample, part, prompt) in enumerate(places)
    ]
    scored = scored_by(scorer, episodes)
    assert [one.episode for one in scored] == episodes
    asked = [(call.options["request_id"], [ids[0] for ids in call.responses]) for call in scorer.calls]
    assert asked == [
        ("step-1/0", [20, 22, 25]),
        ("step-1/0.1", [21]),
        ("step-1/0.2", [23]),
        ("step-1/1", [24]),
    ]
    for one in scored:
        teacher_TV = logprobs_TV(scorer.teacher, one.episode)
        assert float(one.scores.sampled_logprobs_N[0]) == pytest.approx(
            float(teacher_TV[0, one.episode.response_ids[0]])
        )


def test_an_episode_without_a_token_to_score_is_not_asked_about_and_comes_back_empty(
    student: Student, scorer: FakeScorer
) -> None:
    silent, spoken = ("masked", [5, 6]), ("student", [7, 8])
    episodes = [
        episode(student, silent, sample=0),
        episode(student, spoken, sample=1),
        episode(student, silent, slot=1),
    ]
    scored = scored_by(scorer, episodes, objective=ObjectiveConfig(support="teacher", include_sampled=True))
    assert [call.responses for call in scorer.calls] == [[[7, 8]]]
    assert [one.episode for one in scored] == episodes
    assert [len(one.scores.positions_N) for one in scored] == [0, 2, 0]
    assert [one.revision for one in scored] == ["1", "1", ""]
    assert (scored[0].scores.status_T == PositionStatus.EXCLUDED).all()


def test_the_support_is_computed_once_and_the_loss_compares_it(student: Student, scorer: FakeScorer) -> None:
    rule = CountingSupport()
    scorer.support_of = lambda position: 1 if position == 1 else None
    scored = _scored(scorer, rule, [episode(student, *TWO_TURNS), episode(student, *TWO_TURNS, sample=1)])
    targets = targets_of(scored, device=student.device)
    assert rule.calls == {3: 2}
    # The row with one token is dropped from scores and support alike.
    assert [one.scores.positions_N.tolist() for one in scored] == [[0, 4]] * 2
    assert targets.ids_NK.tolist() == [row for one in scored for row in one.scores.support_ids_NK.tolist()]
    assert [one.support.sizes_N.tolist() for one in scored] == [[6, 6]] * 2
    assert targets.turn_N.tolist() == [0, 1, 0, 1]
    assert targets.advantage_N.tolist() == [0.0] * 4


def test_a_scored_episode_has_the_teachers_support_unless_another_is_given() -> None:
    one = scored_rollout(num_positions=2, top_k=3)
    assert one.support.ids_NK.tolist() == one.scores.support_ids_NK.tolist()
    assert one.support.is_sampled_inside_N.tolist() == [False, False]
    assert one.support.teacher_log_tail_N == pytest.approx(one.scores.log_tail_mass_N)


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (Failing(), r"objective.support: Failing.select failed: ZeroDivisionError\('no'\)"),
        (Wrong(ids_NK=np.zeros((1, 6), np.int64)), r"Wrong.select gave ids of shape \(1, 6\) for 2 scored positions"),
        (Wrong(teacher_logprobs_NK=np.zeros((2, 5))), r"gave logprobs of shape \(2, 5\) for ids of shape \(2, 6\)"),
        (Wrong(teacher_tail_N=np.zeros(3)), r"gave teacher_tail_N of shape \(3,\) for 2 scored positions"),
        (Wrong(ids_NK=np.full((2, 6), 259)), "gave an id that is outside the student's vocabulary of 259"),
    ],
)
def test_a_rule_that_gives_no_support_is_named(
    student: Student, scorer: FakeScorer, rule: SupportRule, message: str
) -> None:
    with pytest.raises(InvalidPartError, match=message):
        _scored(scorer, rule, [episode(student, ONE_TURN)])
