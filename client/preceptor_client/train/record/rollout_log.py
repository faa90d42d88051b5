"""Writes a few rollouts of a run token by token: rollouts.jsonl, one object per rollout. Knows nothing of training.

Numbers have five significant digits. JSON has no infinity: null is a teacher_logprob, and the signal with it, of minus
infinity, which says that the teacher cannot write the token; a student_logprob or loss of null was not measured. What
an environment wrote has no student_logprob. What several teachers said is, beside each teacher's own, what the loss
saw: their mixture, or the first teacher's.
"""

# T = tokens of the response, N = its scored positions, K = support size

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import groupby, zip_longest
from pathlib import Path
from types import TracebackType
from typing import NotRequired, Self, TypedDict, cast

import numpy as np
from preceptor.wire import PositionStatus

from preceptor_client.train.data.step_lines import StepLines, read_lines
from preceptor_client.train.learner.columns import StudentColumns
from preceptor_client.train.record.token_texts import Decode, token_text, token_texts
from preceptor_client.train.teacher.scored import ScoredEpisode, TeacherScores

ROLLOUTS_FILE = "rollouts.jsonl"
_WHAT = "a rollout"
SINGLE_SUPPORT = "single_support"
"""Stands for a status: the teacher scored the position, but fewer than two tokens of its support were left."""
ENVIRONMENT = "environment"
"""Stands for a status: the student did not write the token, so nobody was asked to score it."""
MASKED = "masked"
"""Stands for a status: the student wrote the token, and it is left out of the loss."""
NUM_KEPT_STEPS = 8
NUM_SHOWN_TOKENS = 5
"""Of the teacher's support."""


class TeacherToken(TypedDict):
    """What one of several teachers said about a token."""

    logprob: float | None
    weight: float
    """Its share beside the other teachers, at this token."""


class TokenRow(TypedDict):
    """One token of a response; what follows `student_logprob` is there where the loss has the position."""

    text: str
    id: int
    status: str
    """A name of wire.PositionStatus, lower-case, or SINGLE_SUPPORT, ENVIRONMENT or MASKED."""
    student_logprob: NotRequired[float | None]
    """There where the student wrote the token."""
    teacher_logprob: NotRequired[float | None]
    signal: NotRequired[float | None]
    """teacher_logprob - student_logprob, nats."""
    loss: NotRequired[float | None]
    support: NotRequired[list[tuple[str, float]]]
    """The teacher's likeliest tokens and their probabilities; a list of lists in the file."""
    tail_mass: NotRequired[float]
    """The teacher's probability outside its whole support."""
    teachers: NotRequired[dict[str, TeacherToken]]
    """Each teacher's own, by its name in the settings, where they have names."""


class AskedOf(TypedDict, total=False):
    """What it takes to ask the same teacher again; not in what older trainers wrote."""

    teacher: str
    """Its name on its server."""
    teacher_prompt_ids: list[int]
    """The prompt as it was read there, in the teacher's own ids."""


class RolloutRow(AskedOf):
    """One rollout of a step; of an episode in several parts, one part."""

    step: int
    slot: int
    task: str
    """The example's."""
    prompt: str
    finish_reason: str
    tokens: list[TokenRow]
    run_task: NotRequired[str]
    """Its name in the settings, in a run that has named tasks."""
    part: NotRequired[int]
    """Where it is not the first."""
    reward: NotRequired[float]
    """Where it has one."""
    teachers: NotRequired[dict[str, AskedOf]]
    """By their names in the settings, where they have names."""


class RolloutLog:
    """Writes rows as they come. Opened at a step, it drops every row after it, so that a resumed run has no doubles."""

    def __init__(self, directory: Path, *, step: int) -> None:
        self._lines = StepLines(directory / ROLLOUTS_FILE, step=step, what=_WHAT)

    def write(self, rows: Sequence[RolloutRow]) -> None:
        """Appends the rows of a step. They are in the file when this returns."""
        self._lines.write(rows)

    def close(self) -> None:
        self._lines.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def read_rollouts(path: Path) -> list[RolloutRow]:
    """Every whole row of a rollouts.jsonl; none where there is no file."""
    return cast(list[RolloutRow], read_lines(path, what=_WHAT))


def is_kept(step: int, num_steps: int) -> bool:
    """Whether the rollouts of a step are kept: the first, the last, and six spread evenly between them."""
    gaps = NUM_KEPT_STEPS - 1
    return step in {1 + round(index * (num_steps - 1) / gaps) for index in range(NUM_KEPT_STEPS)}


def rollout_rows(
    step: int,
    scored: Sequence[ScoredEpisode],
    columns: Sequence[StudentColumns],
    *,
    decode: Decode,
    num_rollouts: int,
) -> list[RolloutRow]:
    """`num_rollouts` rollouts with a scored position: the first of each task in turn, in the order of the step.
    `columns` are in the order of `scored`; `decode` is the student's, special tokens included."""
    chosen = _spread_over_tasks(scored)[:num_rollouts]
    return [_rollout_row(step, scored[index], columns[index], decode=decode) for index in sorted(chosen)]


def _spread_over_tasks(scored: Sequence[ScoredEpisode]) -> list[int]:
    """Where there is a scored position: the first of each task, then the second of each, and so on."""
    indices = [index for index, one in enumerate(scored) if len(one.scores.positions_N)]
    by_task = [[*group] for _, group in groupby(indices, key=lambda index: scored[index].task)]
    return [index for round_ in zip_longest(*by_task) for index in round_ if index is not None]


def _rollout_row(step: int, one: ScoredEpisode, column: StudentColumns, *, decode: Decode) -> RolloutRow:
    row: RolloutRow = {
        "step": step,
        "slot": one.episode.slot,
        "task": one.episode.example.task,
        "prompt": decode(one.episode.prompt_ids),
        "finish_reason": one.episode.finish_reason,
        "tokens": _token_rows(one, column, decode=decode),
    }
    if one.teacher_prompt_ids is not None:
        row["teacher"], row["teacher_prompt_ids"] = one.teacher, one.teacher_prompt_ids.tolist()
    if one.task:
        row["run_task"] = one.task
    if one.episode.part:
        row["part"] = one.episode.part
    if (reward := one.episode.total_reward) is not None:
        row["reward"] = _short(reward)
    if one.by_teacher:
        row["teachers"] = {answer.name: _asked_of(answer) for answer in one.by_teacher}
    return row


def _asked_of(answer: TeacherScores) -> AskedOf:
    asked: AskedOf = {"teacher": answer.teacher}
    if answer.prompt_ids is not None:
        asked["teacher_prompt_ids"] = answer.prompt_ids.tolist()
    return asked


def _token_rows(one: ScoredEpisode, column: StudentColumns, *, decode: Decode) -> list[TokenRow]:
    prompt_ids, ids = one.episode.prompt_ids, one.episode.response_ids
    row_of_position = {int(position): row for row, position in enumerate(one.scores.positions_N)}
    tokens: list[TokenRow] = []
    before = prompt_ids[-1:]
    for position, text in enumerate(token_texts(prompt_ids, ids, decode=decode)):
        row = row_of_position.get(position)
        token: TokenRow = {"text": text, "id": int(ids[position]), "status": _status(one, position, row=row)}
        if one.episode.is_policy_T[position]:
            token["student_logprob"] = _finite(float(one.episode.student.logprobs_T[position]))
        if row is not None:
            _add_scores(token, one, row, column)
            token["support"] = _likeliest(one, row, before=before, decode=decode)
        tokens.append(token)
        before = ids[position : position + 1]
    return tokens


def _add_scores(token: TokenRow, one: ScoredEpisode, row: int, column: StudentColumns) -> None:
    student_logprob = float(one.episode.student.logprobs_T[one.scores.positions_N[row]])
    teacher_logprob = float(one.scores.sampled_logprobs_N[row])
    token["teacher_logprob"] = _finite(teacher_logprob)
    token["signal"] = _finite(teacher_logprob - student_logprob)
    token["loss"] = _finite(float(column.losses_N[row]))
    token["tail_mass"] = _short(math.exp(float(one.scores.log_tail_mass_N[row])))
    if one.by_teacher:
        token["teachers"] = {answer.name: _said_by(answer, row) for answer in one.by_teacher}


def _said_by(answer: TeacherScores, row: int) -> TeacherToken:
    logprob, weight = float(answer.scores.sampled_logprobs_N[row]), float(answer.shares_N[row])
    return {"logprob": _finite(logprob), "weight": _short(weight)}


def _likeliest(one: ScoredEpisode, row: int, *, before: Sequence[int], decode: Decode) -> list[tuple[str, float]]:
    ids_K, logprobs_K = one.scores.support_ids_NK[row], one.scores.support_logprobs_NK[row]
    # What is -inf fills the row up and is no part of the support.
    inside = np.flatnonzero(np.isfinite(logprobs_K))[:NUM_SHOWN_TOKENS]
    return [
        (token_text(int(ids_K[k]), before=before, decode=decode), _short(math.exp(float(logprobs_K[k]))))
        for k in inside
    ]


def _status(one: ScoredEpisode, position: int, *, row: int | None) -> str:
    """Of several teachers the first's that did not score the position."""
    if not one.episode.is_policy_T[position]:
        return ENVIRONMENT
    if not one.episode.score_mask_T[position]:
        return MASKED
    statuses = [int(scores.status_T[position]) for scores in (one.scores, *(own.scores for own in one.by_teacher))]
    status = next((status for status in statuses if status != PositionStatus.OK), PositionStatus.OK)
    if status == PositionStatus.OK and row is None:
        return SINGLE_SUPPORT
    return PositionStatus(status).name.lower()


def _finite(number: float) -> float | None:
    return _short(number) if math.isfinite(number) else None


def _short(number: float) -> float:
    return float(f"{number:.5g}")
