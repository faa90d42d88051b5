"""Scores episodes by one teacher, and chooses the support of each position. Knows nothing of losses.

`ensemble` does the same with several teachers.
"""

# N = scored positions

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from preceptor_client.train.rollout.episode import Episode
from preceptor_client.train.teacher.failed_groups import OnFailed
from preceptor_client.train.teacher.mixture import rows_of
from preceptor_client.train.teacher.questions import Answer, Questions
from preceptor_client.train.teacher.refusals import OnRefused
from preceptor_client.train.teacher.scored import ScoredEpisode, TeacherScores
from preceptor_client.train.teacher.selection import selected
from preceptor_client.train.teacher.support import Support, SupportRule
from preceptor_client.types import ResponseScores


class Scoring(Protocol):
    """Asks the teachers of a task about episodes: the arrow from Episode to ScoredEpisode."""

    def submit(self, episodes: Sequence[Episode], *, name: str) -> None:
        """Starts scoring; the episodes of a prompt must come in one call. `name` says in the servers' logs what this is
        for."""

    def gather(self, *, on_refused: OnRefused | None = None, on_failed: OnFailed | None = None) -> list[ScoredEpisode]:
        """Waits for everything that was submitted, and returns every episode once, in the order of submission; but for
        those of examples that `on_refused` was told of, and of groups that `on_failed` was told of."""

    def cancel(self) -> None:
        """Gives up what is in flight, after a failure elsewhere."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """Which tokens the loss compares at each position."""

    rule: SupportRule
    min_support: int
    """Positions with fewer tokens are left out."""
    vocabulary_size: int
    """The student's."""

    def support(self, episode: Episode, scores: ResponseScores) -> Support:
        """Computed once for each teacher's answer."""
        sampled_ids_N = np.asarray(episode.response_ids, np.int64)[scores.positions_N]
        return selected(self.rule, scores, sampled_ids_N=sampled_ids_N, vocabulary_size=self.vocabulary_size)


class OneTeacher:
    """`Scoring` by one teacher."""

    def __init__(self, questions: Questions, *, selection: Selection, name: str = "", task: str = "") -> None:
        """`name` is the teacher's in [teachers.NAME], empty where the run has one; `task` that of its task."""
        self._questions = questions
        self._selection = selection
        self._name = name
        self._task = task

    def submit(self, episodes: Sequence[Episode], *, name: str) -> None:
        """As `Scoring.submit`."""
        self._questions.submit(episodes, name=name)

    def gather(self, *, on_refused: OnRefused | None = None, on_failed: OnFailed | None = None) -> list[ScoredEpisode]:
        """As `Scoring.gather`."""
        answers = self._questions.gather(on_refused=on_refused, on_failed=on_failed)
        return [self._scored(answer) for answer in answers]

    def cancel(self) -> None:
        """As `Scoring.cancel`."""
        self._questions.cancel()

    def _scored(self, answer: Answer) -> ScoredEpisode:
        support = self._selection.support(answer.episode, answer.scores)
        whole = ScoredEpisode(
            episode=answer.episode,
            scores=answer.scores,
            revision=answer.revision,
            teacher=answer.teacher,
            teacher_prompt_ids=answer.prompt_ids,
            support=support,
            by_teacher=(named(answer, name=self._name, support=support),) if self._name else (),
            task=self._task,
        )
        return drop_degenerate_rows(whole, min_support=self._selection.min_support)


def named(
    answer: Answer, *, name: str, support: Support, shares_N: np.ndarray[tuple[int], np.dtype[np.float64]] | None = None
) -> TeacherScores:
    """An answer as that of one of several teachers."""
    num_positions = len(answer.scores.positions_N)
    return TeacherScores(
        name=name,
        teacher=answer.teacher,
        scores=answer.scores,
        support=support,
        shares_N=np.ones(num_positions) if shares_N is None else shares_N,
        revision=answer.revision,
        prompt_ids=answer.prompt_ids,
    )


def drop_degenerate_rows(one: ScoredEpisode, *, min_support: int, by_teacher: bool = False) -> ScoredEpisode:
    """Drops the rows with too few tokens in their support; `by_teacher` looks at each teacher's. Nothing after this
    looks for them again."""
    has_choice_N = one.support.sizes_N >= min_support
    if by_teacher:
        for teacher in one.by_teacher:
            has_choice_N &= teacher.support.sizes_N >= min_support
    if has_choice_N.all():
        return one
    return replace(
        one,
        scores=rows_of(one.scores, has_choice_N),
        support=one.support.rows(has_choice_N),
        num_single_support=int((~has_choice_N).sum()),
        by_teacher=tuple(
            replace(
                teacher,
                scores=rows_of(teacher.scores, has_choice_N),
                support=teacher.support.rows(has_choice_N),
                shares_N=teacher.shares_N[has_choice_N],
            )
            for teacher in one.by_teacher
        ),
    )
