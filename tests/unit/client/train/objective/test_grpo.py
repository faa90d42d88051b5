"""Credit by rewards, against values worked by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from preceptor_client.train.errors import InvalidPartError, InvalidWeightsError
from preceptor_client.train.objective.credit import TeacherGap, checked_credit
from preceptor_client.train.objective.grpo import Grpo
from preceptor_client.train.objective.seams import CREDITS
from preceptor_client.train.rollout.episode import Episode
from preceptor_client.train.student.student import Student

from tests.unit.client.train.fake_scorer import FakeScorer
from tests.unit.client.train.objective.episodes import context, episode, scored_by

ONE_TURN = ("student", [5, 6, 7])


def _credit(student: Student, scorer: FakeScorer, episodes: list[Episode], **options: Any) -> list[list[float]]:
    scored = scored_by(scorer, episodes)
    return [credit_N.tolist() for credit_N in Grpo(**options).credit(scored, context(student))]


def test_rewards_are_normalised_among_the_responses_to_one_prompt(student: Student, scorer: FakeScorer) -> None:
    rewards = [(0, 1.0), (0, 0.0), (0, 0.0), (0, 1.0), (1, 5.0), (1, 9.0)]
    episodes = [
        episode(student, ONE_TURN, slot=slot, sample=index, reward=reward)
        for index, (slot, reward) in enumerate(rewards)
    ]
    # Slot 0: mean 1/2, deviation of n - 1: sqrt(4 * 1/4 / 3). Slot 1: mean 7, sqrt((4 + 4) / 1).
    first, second = 0.5 / (1 / 3**0.5 + 1e-6), 2 / (8**0.5 + 1e-6)
    expected = [first, -first, -first, first, -second, second]
    credit = _credit(student, scorer, episodes)
    assert credit == [pytest.approx([value] * 3) for value in expected]


def test_without_scale_the_mean_alone_is_taken_off(student: Student, scorer: FakeScorer) -> None:
    episodes = [episode(student, ONE_TURN, sample=index, reward=reward) for index, reward in enumerate((5.0, 9.0))]
    assert _credit(student, scorer, episodes, scale=False) == [[-2.0] * 3, [2.0] * 3]


def test_a_response_alone_and_equal_rewards_have_no_credit(student: Student, scorer: FakeScorer) -> None:
    episodes = [
        episode(student, ONE_TURN, slot=0, reward=3.0),
        episode(student, ONE_TURN, slot=1, sample=0, reward=3.0),
        episode(student, ONE_TURN, slot=1, sample=1, reward=3.0),
    ]
    for options in ({}, {"per_segment": True}):
        assert _credit(student, scorer, episodes, **options) == [[0.0] * 3] * 3


def test_parts_of_an_episode_are_one_response_whose_rewards_add_up(student: Student, scorer: FakeScorer) -> None:
    episodes = [
        episode(student, ONE_TURN, sample=0, part=0, reward=1.0),
        episode(student, ONE_TURN, sample=0, part=1, reward=2.0, prompt_ids=(9, 9)),
        episode(student, ONE_TURN, sample=1, reward=1.0),
    ]
    # 3 against 1: two responses and not three.
    assert _credit(student, scorer, episodes, scale=False) == [[1.0] * 3, [1.0] * 3, [-1.0] * 3]


def test_rewards_per_segment_are_normalised_over_all_and_count_for_what_came_before(
    student: Student, scorer: FakeScorer
) -> None:
    turns = (("student", [5, 6]), ("environment", [8]), ("student", [7]))
    episodes = [
        episode(student, *turns, sample=0, reward=(1.0, None, 4.0)),
        episode(student, *turns, sample=1, reward=(None, 1.0, None)),
    ]
    # Among (1, 4, 1): mean 2. Turn 0 has its own reward and the later one: (1 - 2) + (4 - 2); the environment's
    # reward after turn 0 is turn 0's.
    credit = _credit(student, scorer, episodes, scale=False, per_segment=True)
    assert credit == [[1.0, 1.0, 2.0], [-1.0, -1.0, 0.0]]
    deviation = 3**0.5 + 1e-6  # sqrt((1 + 4 + 1) / 2)
    scaled = _credit(student, scorer, episodes, per_segment=True)
    assert scaled == [
        pytest.approx([1 / deviation, 1 / deviation, 2 / deviation]),
        pytest.approx([-1 / deviation] * 2 + [0]),
    ]
    # As a whole: 5 against 1.
    assert _credit(student, scorer, episodes, scale=False) == [[2.0] * 3, [-2.0] * 3]


def test_an_episode_that_no_token_is_learned_from_still_counts_in_its_group(
    student: Student, scorer: FakeScorer
) -> None:
    episodes = [
        episode(student, ("masked", [5, 6]), sample=0, reward=4.0),
        episode(student, ONE_TURN, sample=1, reward=0.0),
    ]
    assert _credit(student, scorer, episodes, scale=False) == [[], [-2.0] * 3]


def test_a_response_without_reward_is_named_with_its_task(student: Student, scorer: FakeScorer) -> None:
    episodes = [
        episode(student, ONE_TURN, sample=0, reward=1.0),
        episode(student, ONE_TURN, sample=1, task="sums"),
    ]
    with pytest.raises(InvalidWeightsError, match=r"credit.kind=grpo needs a reward .* of task 'sums' has none"):
        _credit(student, scorer, episodes)


def test_options_are_checked_by_name() -> None:
    with pytest.raises(InvalidPartError, match=r"credit.options.scael: Grpo has no such option; it has: scale, eps"):
        CREDITS.make("grpo", {"scael": True}, key="credit.kind")
    with pytest.raises(InvalidPartError, match=r"credit.options: grpo refuses them: epsilon=0.0 must be above 0"):
        CREDITS.make("grpo", {"epsilon": 0.0}, key="credit.kind")


def test_the_teachers_gap_is_floored_where_the_teacher_cannot_write_the_token(
    student: Student, scorer: FakeScorer
) -> None:
    (one,) = scored_by(scorer, [episode(student, ONE_TURN)])
    one.scores.sampled_logprobs_N[1] = -np.inf
    (gap_N,) = TeacherGap().credit([one], context(student))
    student_N = one.episode.student.logprobs_T
    teacher = [float(one.scores.sampled_logprobs_N[0]), -100.0, float(one.scores.sampled_logprobs_N[2])]
    assert gap_N.tolist() == pytest.approx([q - float(p) for q, p in zip(teacher, student_N, strict=True)])


def test_credit_that_does_not_fit_is_refused(student: Student, scorer: FakeScorer) -> None:
    scored = scored_by(scorer, [episode(student, ONE_TURN)])
    for columns, message in (
        ([], "credit values: 0 arrays for 1 rollouts"),
        ([np.zeros(2)], r"credit values of rollout 0 have shape \(2,\): it has 3"),
        ([np.array([0.0, np.inf, 0.0])], "credit values of rollout 0 hold NaN or infinity"),
    ):
        with pytest.raises(InvalidWeightsError, match=message):
            checked_credit(columns, scored=scored)
    assert checked_credit([np.array([-1, 0, 2])], scored=scored)[0].tolist() == [-1, 0, 2]
