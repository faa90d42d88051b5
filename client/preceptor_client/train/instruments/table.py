"""All scored positions of a step as flat columns, student's and teacher's side by side. Judges nothing."""

# N = scored positions of the step, R = its responses, T = tokens of one response, K = support size

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
import numpy.typing as npt

from preceptor_client.train.instruments.repetition import repeated_ngrams
from preceptor_client.train.learner.columns import StudentColumns
from preceptor_client.train.teacher.scored import ScoredEpisode

IntColumn = npt.NDArray[np.int64]
FloatColumn = npt.NDArray[np.float64]
BoolColumn = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PositionTable:
    """One row per scored position, in the order of the responses, and one per response. NaN is "not measured".

    Logprobs and entropies are natural, over the whole vocabulary, at the temperature of the loss.
    """

    responses_N: IntColumn
    """Which response a position is in: an index into the columns of responses."""
    positions_N: IntColumn
    """Index of the token in its response."""
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
    """The token completes an n-gram that stood before in its response; positions without a score count as text."""
    is_end_N: BoolColumn
    """The student's token is an end token."""
    is_teacher_end_N: BoolColumn
    """The teacher's likeliest token is an end token of the student."""
    lengths_R: IntColumn
    """Tokens of the response, the end token included."""
    is_truncated_R: BoolColumn
    """The response was cut at rollout.max_new_tokens."""
    has_scored_end_R: BoolColumn
    """Its end token has a score; a response that was cut has no end token."""
    tasks_R: npt.NDArray[np.object_]
    """The task of its example, a text; empty where the example names none."""

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
    """The table of a step. `columns` are of the same rollouts in the same order, `end_token_ids` are the student's."""
    assert len(scored) == len(columns)
    for one, column in zip(scored, columns, strict=True):
        assert len(column.losses_N) == len(column.masses_N) == len(column.overlaps_N) == len(one.scores.positions_N)
    rows_R = [one.scores.positions_N for one in scored]
    sampled_N = _ints(one.sampled_ids_N for one in scored)
    is_end_N = np.isin(sampled_N, np.array(end_token_ids, np.int64))
    responses_N = np.repeat(np.arange(len(scored)), [len(rows) for rows in rows_R])
    return PositionTable(
        responses_N=responses_N,
        positions_N=_ints(rows_R),
        student_logprobs_N=_floats(one.episode.student.logprobs_T[one.scores.positions_N] for one in scored),
        teacher_logprobs_N=_floats(one.scores.sampled_logprobs_N for one in scored),
        student_entropies_N=_floats(one.episode.student.entropies_T[one.scores.positions_N] for one in scored),
        teacher_entropies_N=_floats(_teacher_entropies(one) for one in scored),
        student_masses_N=_floats(column.masses_N for column in columns),
        teacher_masses_N=-np.expm1(_floats(one.scores.log_tail_mass_N for one in scored)),
        overlaps_N=_floats(column.overlaps_N for column in columns),
        losses_N=_floats(column.losses_N for column in columns),
        is_outside_N=~_bools(_is_inside(one) for one in scored),
        is_repeated_N=_bools(repeated_ngrams(one.episode.response_ids)[one.scores.positions_N] for one in scored),
        is_end_N=is_end_N,
        is_teacher_end_N=np.isin(_ints(_likeliest(one) for one in scored), np.array(end_token_ids, np.int64)),
        lengths_R=np.array([len(one.episode.response_ids) for one in scored], np.int64),
        is_truncated_R=np.array([one.episode.finish_reason == "length" for one in scored], np.bool_),
        has_scored_end_R=np.bincount(responses_N[is_end_N], minlength=len(scored)) > 0,
        tasks_R=np.array([one.episode.example.task for one in scored], np.object_),
    )


def _teacher_entropies(one: ScoredEpisode) -> npt.NDArray[np.floating]:
    entropies_N = one.scores.entropies_N
    return np.full(len(one.scores.positions_N), np.nan) if entropies_N is None else entropies_N


def _is_inside(one: ScoredEpisode) -> BoolColumn:
    """Whether the student's token is in the teacher's support, shape [N]."""
    scores = one.scores
    is_match_NK = scores.support_ids_NK == one.sampled_ids_N[:, None]
    inside_N: BoolColumn = (is_match_NK & ~np.isneginf(scores.support_logprobs_NK)).any(axis=1)
    return inside_N


def _likeliest(one: ScoredEpisode) -> npt.NDArray[np.integer]:
    """The teacher's likeliest token, shape [N]: supports come by descending logprob, fillers last."""
    likeliest_N: npt.NDArray[np.integer] = one.scores.support_ids_NK[:, 0]
    return likeliest_N


def _ints(parts: Iterable[npt.NDArray[np.integer]]) -> IntColumn:
    return np.concatenate([np.empty(0, np.int64), *parts], dtype=np.int64, casting="unsafe")


def _floats(parts: Iterable[npt.NDArray[np.floating]]) -> FloatColumn:
    return np.concatenate([np.empty(0), *parts], dtype=np.float64)


def _bools(parts: Iterable[BoolColumn]) -> BoolColumn:
    return np.concatenate([np.empty(0, np.bool_), *parts])
