"""Groups that a teacher fails on: who leaves a step, how they are counted, and when they are too many."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from preceptor_client.errors import GroupFailedError
from preceptor_client.train.errors import RunDirectoryError
from preceptor_client.train.objective.config import ObjectiveConfig
from preceptor_client.train.rollout.episode import Episode
from preceptor_client.train.student.student import Student
from preceptor_client.train.teacher.config import TeacherConfig
from preceptor_client.train.teacher.ensemble import Ensemble
from preceptor_client.train.teacher.failed_groups import FailedGroup, FailureLimit, GroupCount, RecentGroups
from preceptor_client.train.teacher.questions import Questions
from preceptor_client.train.teacher.scoring import OneTeacher, Selection
from preceptor_client.train.teacher.support import TeacherSupport

from tests.unit.client.train.assembled import scoring_for
from tests.unit.client.train.fake_scorer import FakeScorer, agreement_with
from tests.unit.client.train.objective.episodes import episode
from tests.unit.client.train.tiny import tiny_student

FAILURE = GroupFailedError("teacher a:1: INTERNAL: the model raised", reason="BAD_GROUP", incident="7f3a")


@pytest.fixture
def episodes(student: Student) -> list[Episode]:
    """Three groups, the first of two episodes; nothing of the last is to be scored."""
    return [
        episode(student, ("student", (5, 6, 7)), slot=0),
        episode(student, ("student", (8,)), slot=0, sample=1),
        episode(student, ("student", (9, 10)), slot=1),
        episode(student, ("masked", (5, 6)), slot=2),
    ]


def _one_teacher(scorer: FakeScorer) -> OneTeacher:
    return scoring_for(
        scorer,
        teacher=TeacherConfig(address="a:1", name="tutor", top_k=4),
        objective=ObjectiveConfig(),
        agreement=agreement_with(scorer.teacher),
        vocabulary_size=259,
    )


def _ensemble(teachers: dict[str, FakeScorer], *, is_mixture: bool) -> Ensemble:
    questions = {
        name: Questions(
            scorer,
            config=TeacherConfig(address="a:1"),
            agreement=agreement_with(scorer.teacher),
            top_k=4,
            num_student_tokens=0,
            vocabulary_size=259,
            name=name,
        )
        for name, scorer in teachers.items()
    }
    selection = Selection(rule=TeacherSupport(), min_support=2, vocabulary_size=259)
    return Ensemble(questions, selection=selection, shares={"law": 0.5, "code": 0.5}, is_mixture=is_mixture)


def _at(index: int, failure: GroupFailedError = FAILURE) -> dict[int, GroupFailedError]:
    return {index: failure}


def test_episodes_of_a_failed_group_leave_the_step_and_the_others_keep_their_scores(
    scorer: FakeScorer, episodes: list[Episode]
) -> None:
    whole = _one_teacher(FakeScorer(teacher=scorer.teacher))
    whole.submit(episodes, name="step-1")
    scorer.error_at = _at(0).get
    scoring, groups = _one_teacher(scorer), GroupCount()
    scoring.submit(episodes, name="step-1")
    groups.add(episodes)
    found = scoring.gather(on_failed=groups.fail)
    assert [one.episode for one in found] == episodes[2:]
    for one, other in zip(found, whole.gather()[2:], strict=True):
        assert one.scores.support_logprobs_NK.tolist() == other.scores.support_logprobs_NK.tolist()
    (failed,) = groups.failed
    assert str(failed) == f"example 0: teacher 'tutor' failed on its group: {FAILURE}"
    assert (failed.example, failed.teacher, failed.error.incident) == (episodes[0].example.name, "tutor", "7f3a")
    assert groups.outcomes == [True, False], "a group of which nothing is to be scored is no group that was asked about"


def test_failure_that_nobody_takes_is_raised(scorer: FakeScorer, episodes: list[Episode]) -> None:
    scorer.error_at = _at(0).get
    scoring = _one_teacher(scorer)
    scoring.submit(episodes, name="step-1")
    with pytest.raises(GroupFailedError, match="the model raised"):
        scoring.gather()


@pytest.mark.parametrize("is_mixture", [True, False])
@pytest.mark.parametrize("failing", [("law",), ("code",), ("law", "code")])
def test_what_one_teacher_of_several_fails_on_leaves_the_ensemble_and_counts_once(
    episodes: list[Episode], is_mixture: bool, failing: tuple[str, ...]
) -> None:
    teachers = {
        name: FakeScorer(teacher=tiny_student(seed=seed), name=name) for name, seed in (("law", 1), ("code", 2))
    }
    for name in failing:
        teachers[name].error_at = _at(0).get
    scoring, groups = _ensemble(teachers, is_mixture=is_mixture), GroupCount()
    scoring.submit(episodes, name="step-1")
    groups.add(episodes)
    found = scoring.gather(on_failed=groups.fail)
    # In a mixture a teacher is not asked about what the first one failed on: its first call is the next group.
    is_second_hit = is_mixture and failing == ("law", "code")
    assert [one.episode.slot for one in found] == ([2] if is_second_hit else [1, 2])
    assert groups.outcomes == ([True, True] if is_second_hit else [True, False])
    assert groups.failed[0].teacher == failing[0]
    for one in found:
        assert [teacher.name for teacher in one.by_teacher] == ["law", "code"]


def _failed(slot: int) -> FailedGroup:
    return FailedGroup(key=(slot, ()), example="a:1", teacher="t", error=FAILURE)


@pytest.mark.parametrize(
    ("max_share", "num_failed", "num_groups", "is_excess"),
    [
        (0.05, 4, 4, False),
        (0.05, 5, 5, True),
        (0.05, 5, 99, True),
        (0.05, 5, 100, False),
        (0.05, 10, 200, False),
        (0.05, 11, 200, True),
        (0.0, 0, 8, False),
        (0.0, 1, 200, True),
        (1.0, 200, 200, False),
    ],
)
def test_limit_is_a_share_of_the_last_groups_once_five_have_failed(
    max_share: float, num_failed: int, num_groups: int, is_excess: bool
) -> None:
    outcomes = [True] * num_failed + [False] * (num_groups - num_failed)
    told = FailureLimit(max_share=max_share).excess(outcomes)
    assert told == (
        f"teachers failed on {num_failed} of the last {num_groups} group(s), more than run.max_failed_share={max_share}"
        if is_excess
        else ""
    )


def test_recent_groups_are_the_last_200_and_come_back_from_a_checkpoint(tmp_path: Path) -> None:
    recent = RecentGroups()
    recent.add([True] * 3 + [False] * 198)
    assert recent.with_step([]) == [True] * 2 + [False] * 198, "the first of 201 is forgotten"
    assert recent.with_step([True, True]) == [False] * 198 + [True, True]
    assert sum(recent.with_step([])) == 2, "a step that is not done counts for nothing"
    recent.save(tmp_path)
    again = RecentGroups()
    again.load(tmp_path)
    assert again.with_step([]) == recent.with_step([])


def test_checkpoint_without_recent_groups_is_one_of_a_run_in_which_none_was_counted(tmp_path: Path) -> None:
    recent = RecentGroups()
    recent.load(tmp_path)
    assert recent.with_step([]) == []
    (tmp_path / "recent_groups.json").write_text("[1, ")
    with pytest.raises(RunDirectoryError, match=r"recent_groups\.json cannot be read"):
        recent.load(tmp_path)


def test_a_group_that_several_teachers_fail_on_is_named_by_the_first(episodes: list[Episode]) -> None:
    groups = GroupCount()
    groups.add(episodes)
    first = replace(_failed(0), key=(0, episodes[0].prompt_ids))
    groups.fail(first)
    groups.fail(replace(first, teacher="other"))
    assert groups.failed == [first]
    assert groups.outcomes == [True, False]
