"""Scores the same episodes by several teachers: as a mixture in probability, or by each teacher apart.

Knows nothing of losses.
"""

# T = tokens of a response, N = scored positions, M = teachers

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Protocol

import numpy as np
import numpy.typing as npt

from preceptor_client.train.errors import InvalidPartError, InvalidWeightsError
from preceptor_client.train.parts import Seam
from preceptor_client.train.rollout.episode import Episode
from preceptor_client.train.teacher.failed_groups import OnFailed
from preceptor_client.train.teacher.mixture import at_common_positions, ids_to_ask_about, mixed
from preceptor_client.train.teacher.questions import Answer, Questions
from preceptor_client.train.teacher.refusals import OnRefused
from preceptor_client.train.teacher.scored import ScoredEpisode
from preceptor_client.train.teacher.scoring import Selection, drop_degenerate_rows, named
from preceptor_client.types import ResponseScores

_Shares = npt.NDArray[np.float64]


class ShareRule(Protocol):
    """Weighs the teachers of an episode position by position. One class, named in TOML: tasks.NAME.teacher_weights =
    {kind = "package.module:Name"}."""

    def shares(self, episode: Episode, answers: Mapping[str, ResponseScores]) -> Mapping[str, npt.NDArray[np.floating]]:
        """For each teacher, by its name, a weight at each position, [N], at least 0; they are divided by their sum. All
        answers are at the same positions."""
        ...


SHARES: Seam[ShareRule] = Seam(what="a rule of the teachers' weights", protocol=ShareRule, builtins={})


class Ensemble:
    """`Scoring` by several teachers.

    "mixture": the first teacher names the support, the others are asked about its tokens, and the answers become one
    distribution, sum of share * probability. "divergences": each has a support of its own. In both a position counts
    that all of them scored.
    """

    def __init__(
        self,
        questions: Mapping[str, Questions],
        *,
        selection: Selection,
        shares: Mapping[str, float],
        rule: ShareRule | None = None,
        is_mixture: bool,
        task: str = "",
    ) -> None:
        """`questions` by the names of the teachers; `shares` add up to 1, and `rule` replaces them."""
        self._questions = questions
        self._selection = selection
        self._shares = shares
        self._rule = rule
        self._is_mixture = is_mixture
        self._task = task
        self._first = next(iter(questions))
        self._others = [name for name in questions if name != self._first]
        self._name = ""

    def submit(self, episodes: Sequence[Episode], *, name: str) -> None:
        """As `Scoring.submit`."""
        self._name = name
        asked = [self._first] if self._is_mixture else list(self._questions)
        for teacher in asked:
            self._questions[teacher].submit(episodes, name=name)

    def gather(self, *, on_refused: OnRefused | None = None, on_failed: OnFailed | None = None) -> list[ScoredEpisode]:
        """As `Scoring.gather`. An episode that one teacher refuses or fails on is left out for all."""
        try:
            first = self._questions[self._first].gather(on_refused=on_refused, on_failed=on_failed)
            answers = {self._first: first}
            if self._is_mixture:
                self._ask_others(first)
            for name in self._others:
                answers[name] = self._questions[name].gather(on_refused=on_refused, on_failed=on_failed)
        finally:
            self.cancel()
        by_episode = {name: {id(one.episode): one for one in given} for name, given in answers.items()}
        scored: list[ScoredEpisode] = []
        for answer in answers[self._first]:
            given = {name: by_episode[name].get(id(answer.episode)) for name in self._questions}
            whole = {name: one for name, one in given.items() if one is not None}
            if len(whole) == len(given):
                scored.append(self._combined(answer.episode, whole))
        return scored

    def cancel(self) -> None:
        """As `Scoring.cancel`."""
        for questions in self._questions.values():
            questions.cancel()

    def _ask_others(self, answers: Sequence[Answer]) -> None:
        episodes = [answer.episode for answer in answers]
        ids_TC = [ids_to_ask_about(answer.scores, student_ids_TC=_student_ids(answer)) for answer in answers]
        for name in self._others:
            if episodes:
                self._questions[name].submit(episodes, name=self._name, candidate_ids_TC=ids_TC)

    def _combined(self, episode: Episode, answers: Mapping[str, Answer]) -> ScoredEpisode:
        common = at_common_positions([answer.scores for answer in answers.values()])
        scores = dict(zip(answers, common, strict=True))
        shares_MN = self._shares_at(episode, scores)
        by_teacher = tuple(
            named(
                replace(answer, scores=scores[name]),
                name=name,
                support=self._selection.support(episode, scores[name]),
                shares_N=shares_MN[index],
            )
            for index, (name, answer) in enumerate(answers.items())
        )
        first = common[0]
        whole = ScoredEpisode(
            episode=episode,
            scores=mixed(first, common[1:], shares_MN=shares_MN) if self._is_mixture else first,
            revision=", ".join(answer.revision for answer in answers.values()),
            teacher=answers[self._first].teacher,
            teacher_prompt_ids=answers[self._first].prompt_ids,
            by_teacher=by_teacher,
            task=self._task,
        )
        whole = replace(whole, support=self._selection.support(episode, whole.scores))
        return drop_degenerate_rows(whole, min_support=self._selection.min_support, by_teacher=not self._is_mixture)

    def _shares_at(self, episode: Episode, scores: Mapping[str, ResponseScores]) -> _Shares:
        num_positions = len(scores[self._first].positions_N)
        if self._rule is None:
            return np.array([np.full(num_positions, self._shares[name]) for name in scores])
        key = f"teacher_weights: {type(self._rule).__name__}.shares"
        try:
            given = self._rule.shares(episode, scores)
            shares_MN = np.array([np.asarray(given[name], np.float64) for name in scores])
        except Exception as error:
            raise InvalidPartError(f"{key} failed: {error!r}") from error
        if shares_MN.shape != (len(scores), num_positions):
            raise InvalidWeightsError(f"{key}: gave shape {shares_MN.shape[1:]} for {num_positions} positions")
        if not np.isfinite(shares_MN).all() or (shares_MN < 0).any() or not (shares_MN.sum(axis=0) > 0).all():
            raise InvalidWeightsError(f"{key}: weights must be finite, at least 0, and not all 0 at a position")
        normalised: _Shares = shares_MN / shares_MN.sum(axis=0)
        return normalised


def _student_ids(answer: Answer) -> npt.NDArray[np.integer] | None:
    """The student's likeliest tokens, [T, C], as many as the first teacher was asked about; None for none."""
    asked_NC, ids_TK = answer.scores.candidate_ids_NC, answer.episode.student.top_ids_TK
    return None if asked_NC is None or ids_TK is None else ids_TK[:, : asked_NC.shape[1]]
