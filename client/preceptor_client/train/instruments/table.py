"""Lays the scored positions of a step out as flat columns of student and teacher. Judges nothing."""

# N = scored positions of the step, P = its parts, R = its responses, T = tokens of one part, K = support size

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
import numpy.typing as npt

from preceptor_client.train.instruments.responses import Responses, responses_of
from preceptor_client.train.learner.columns import StudentColumns, unmeasured
from preceptor_client.train.teacher.scored import ScoredEpisode, TeacherScores
from preceptor_client.types import ResponseScores

IntColumn = npt.NDArray[np.int64]
FloatColumn = npt.NDArray[np.float64]
BoolColumn = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PositionTable:
    """One row per scored position, in the order of the responses, and one per response, which is a whole episode. NaN
    is "not measured".

    Logprobs and entropies are natural, over the whole vocabulary, at the temperature of the loss.
    """

    responses_N: IntColumn
    """Which response a position is in: an index into the columns of responses."""
    positions_N: IntColumn
    """How many tokens of the student precede the token in its response."""
    turns_N: IntColumn
    """The turn of the token in its response, from 0."""
    student_logprobs_N: FloatColumn
    """Of the token that the student wrote."""
    teacher_logprobs_N: FloatColumn
    """Of the same token; -inf where the teacher gives it no probability."""
    student_entropies_N: FloatColumn
    teacher_entropies_N: FloatColumn
    """NaN from a teacher that does not compute them."""
    student_masses_N: FloatColumn
    """The student's probability inside the teacher's top K; measured on a sample of positions."""
    teacher_masses_N: FloatColumn
    """The teacher's own probability there."""
    overlaps_N: FloatColumn
    """Share of the teacher's top K that is in the student's; measured on a sample of positions."""
    losses_N: FloatColumn
    is_outside_N: BoolColumn
    """The student's token is not in the teacher's top K; an entry of -inf, which fills a row up, is outside."""
    is_repeated_N: BoolColumn
    """The token completes an n-gram that the student wrote before in its response; the student's tokens without a score
    count as text, an environment's tokens do not."""
    is_end_N: BoolColumn
    """The student's token is an end token."""
    is_teacher_end_N: BoolColumn
    """The teacher's likeliest token is an end token of the student."""
    shares_N: FloatColumn
    """How much this teacher counts at the position, beside others; 1 where it is alone."""
    lengths_R: IntColumn
    """Tokens of the student, end tokens included."""
    num_turns_R: IntColumn
    is_truncated_R: BoolColumn
    """The response was cut at a limit on tokens."""
    has_scored_end_R: BoolColumn
    """Its last token is an end token and has a score; a response that was cut has no end token."""
    tasks_R: npt.NDArray[np.object_]
    """The task of its example, a text; empty where the example names none."""
    run_tasks_R: npt.NDArray[np.object_]
    """The task of the run that it belongs to, a text; empty where the run has one, without a name."""
    rewards_R: FloatColumn
    """NaN without a reward."""

    def part(self, *, rows_N: BoolColumn, responses_R: BoolColumn) -> PositionTable:
        """The table of these positions and responses alone; every position's response must be among them."""
        index_R = np.cumsum(responses_R) - 1
        changes = {
            field.name: getattr(self, field.name)[rows_N if field.name.endswith("_N") else responses_R]
            for field in fields(self)
        }
        return replace(self, **changes | {"responses_N": index_R[changes["responses_N"]]})


def position_table(
    scored: Sequence[ScoredEpisode], columns: Sequence[StudentColumns], *, end_token_ids: Sequence[int]
) -> PositionTable:
    """The table of a step. `columns` are of the same episodes in the same order, `end_token_ids` are the student's."""
    assert len(scored) == len(columns)
    answers = [_Answer(episode=one, scores=one.scores, columns=own) for one, own in zip(scored, columns, strict=True)]
    return _table(answers, end_token_ids=end_token_ids)


def teacher_tables(
    scored: Sequence[ScoredEpisode], columns: Sequence[StudentColumns], *, end_token_ids: Sequence[int]
) -> dict[str, PositionTable]:
    """A table of each teacher's own answers, by its name in the settings; none where the teachers have no names. What
    `columns` hold was measured against all teachers of an episode: it is a teacher's where it was alone."""
    answers: dict[str, list[_Answer]] = {}
    for one, own in zip(scored, columns, strict=True):
        for answer in one.by_teacher:
            measured = own if len(one.by_teacher) == 1 else unmeasured(len(answer.scores.positions_N))
            answers.setdefault(answer.name, []).append(
                _Answer(episode=one, scores=answer.scores, columns=measured, teacher=answer)
            )
    return {name: _table(theirs, end_token_ids=end_token_ids) for name, theirs in answers.items()}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Answer:
    """What is in a table of one part of an episode."""

    episode: ScoredEpisode
    scores: ResponseScores
    columns: StudentColumns
    teacher: TeacherScores | None = None
    """Whose scores these are, where it has a name."""

    def __post_init__(self) -> None:
        num_positions, own = len(self.scores.positions_N), self.columns
        assert len(own.losses_N) == len(own.masses_N) == len(own.overlaps_N) == num_positions

    @property
    def sampled_ids_N(self) -> IntColumn:
        """The tokens that the student wrote."""
        return np.asarray(self.episode.episode.response_ids, np.int64)[self.scores.positions_N]


def _table(answers: Sequence[_Answer], *, end_token_ids: Sequence[int]) -> PositionTable:
    ends = np.array(end_token_ids, np.int64)
    responses = responses_of([one.episode.episode for one in answers])
    rows_P = [one.scores.positions_N for one in answers]
    is_end_N = np.isin(_ints(one.sampled_ids_N for one in answers), ends)
    students = [one.episode.episode.student for one in answers]
    last = [answers[part].episode for part in responses.last_part_R]
    return PositionTable(
        responses_N=np.repeat(responses.index_P, [len(rows) for rows in rows_P]),
        positions_N=_ints(responses.positions_T(part)[rows] for part, rows in enumerate(rows_P)),
        turns_N=_ints(responses.turns_T(part)[rows] for part, rows in enumerate(rows_P)),
        student_logprobs_N=_floats(view.logprobs_T[rows] for view, rows in zip(students, rows_P, strict=True)),
        teacher_logprobs_N=_floats(one.scores.sampled_logprobs_N for one in answers),
        student_entropies_N=_floats(view.entropies_T[rows] for view, rows in zip(students, rows_P, strict=True)),
        teacher_entropies_N=_floats(_teacher_entropies(one.scores) for one in answers),
        student_masses_N=_floats(one.columns.masses_N for one in answers),
        teacher_masses_N=-np.expm1(_floats(one.scores.log_tail_mass_N for one in answers)),
        overlaps_N=_floats(one.columns.overlaps_N for one in answers),
        losses_N=_floats(one.columns.losses_N for one in answers),
        is_outside_N=~_bools(_is_inside(one) for one in answers),
        is_repeated_N=_bools(
            is_repeated_T[rows] for is_repeated_T, rows in zip(responses.is_repeated_TP(), rows_P, strict=True)
        ),
        is_end_N=is_end_N,
        is_teacher_end_N=np.isin(_ints(_likeliest(one.scores) for one in answers), ends),
        shares_N=_floats(_shares(one) for one in answers),
        lengths_R=responses.lengths_R,
        num_turns_R=responses.num_turns_R,
        is_truncated_R=np.array([one.episode.finish_reason == "length" for one in last], np.bool_),
        has_scored_end_R=_has_scored_end(answers, responses, ends=ends),
        tasks_R=np.array([one.episode.example.task for one in last], np.object_),
        run_tasks_R=np.array([one.task for one in last], np.object_),
        rewards_R=responses.rewards_R(),
    )


def _has_scored_end(answers: Sequence[_Answer], responses: Responses, *, ends: IntColumn) -> BoolColumn:
    has_end = []
    for response, part in enumerate(responses.last_part_R):
        one, position = answers[part], responses.last_own_position(response)
        is_scored = bool((one.scores.positions_N == position).any())
        has_end.append(is_scored and one.episode.episode.response_ids[position] in ends)
    return np.array(has_end, np.bool_)


def _shares(one: _Answer) -> npt.NDArray[np.floating]:
    return np.ones(len(one.scores.positions_N)) if one.teacher is None else one.teacher.shares_N


def _teacher_entropies(scores: ResponseScores) -> npt.NDArray[np.floating]:
    entropies_N = scores.entropies_N
    return np.full(len(scores.positions_N), np.nan) if entropies_N is None else entropies_N


def _is_inside(one: _Answer) -> BoolColumn:
    """Whether the student's token is in the teacher's support, shape [N]."""
    scores = one.scores
    is_match_NK = scores.support_ids_NK == one.sampled_ids_N[:, None]
    inside_N: BoolColumn = (is_match_NK & ~np.isneginf(scores.support_logprobs_NK)).any(axis=1)
    return inside_N


def _likeliest(scores: ResponseScores) -> npt.NDArray[np.integer]:
    """The teacher's likeliest token, shape [N]: supports come by descending logprob, fillers last."""
    likeliest_N: npt.NDArray[np.integer] = scores.support_ids_NK[:, 0]
    return likeliest_N


def _ints(parts: Iterable[npt.NDArray[np.integer]]) -> IntColumn:
    return np.concatenate([np.empty(0, np.int64), *parts], dtype=np.int64, casting="unsafe")


def _floats(parts: Iterable[npt.NDArray[np.floating]]) -> FloatColumn:
    return np.concatenate([np.empty(0), *parts], dtype=np.float64)


def _bools(parts: Iterable[BoolColumn]) -> BoolColumn:
    return np.concatenate([np.empty(0, np.bool_), *parts])
