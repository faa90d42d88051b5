"""A few rollouts of a run, token by token, on disk: rollouts.jsonl, one object per rollout. Knows nothing of training.

Numbers have five significant digits. JSON has no infinity: null is a teacher_logprob, and the signal with it, of minus
infinity, which says that the teacher cannot write the token; a student_logprob or loss of null was not measured.
"""

# T = tokens of the response, N = its scored positions, K = support size

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import NotRequired, Self, TypedDict, cast

import numpy as np
from preceptor.wire import PositionStatus

from preceptor_client.train.data.step_lines import StepLines, read_lines
from preceptor_client.train.learner.columns import StudentColumns
from preceptor_client.train.record.token_texts import Decode, token_text, token_texts
from preceptor_client.train.teacher.scored import ScoredEpisode

ROLLOUTS_FILE = "rollouts.jsonl"
_WHAT = "a rollout"
SINGLE_SUPPORT = "single_support"
"""Stands for a status: the teacher scored the position, but fewer than two tokens of its support were left."""
NUM_KEPT_STEPS = 8
NUM_SHOWN_TOKENS = 5
"""Of the teacher's support."""


class TokenRow(TypedDict):
    """One token of a response; what follows `student_logprob` is there where the loss has the position."""

    text: str
    id: int
    status: str
    """A name of wire.PositionStatus, lower-case, or SINGLE_SUPPORT."""
    student_logprob: float | None
    teacher_logprob: NotRequired[float | None]
    signal: NotRequired[float | None]
    """teacher_logprob - student_logprob, nats."""
    loss: NotRequired[float | None]
    support: NotRequired[list[tuple[str, float]]]
    """The teacher's likeliest tokens and their probabilities; a list of lists in the file."""
    tail_mass: NotRequired[float]
    """The teacher's probability outside its whole support."""


class AskedOf(TypedDict, total=False):
    """What it takes to ask the same teacher again; not in what older trainers wrote."""

    teacher: str
    """Its name."""
    teacher_prompt_ids: list[int]
    """The prompt as it was read there, in the teacher's own ids."""


class RolloutRow(AskedOf):
    """One rollout of a step."""

    step: int
    slot: int
    task: str
    prompt: str
    finish_reason: str
    tokens: list[TokenRow]


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
    """The first `num_rollouts` rollouts with a scored position. `columns` are in the order of `scored`; `decode` is
    the student's, special tokens included."""
    pairs = ((one, column) for one, column in zip(scored, columns, strict=True) if len(one.scores.positions_N))
    return [
        {
            "step": step,
            "slot": one.episode.slot,
            "task": one.episode.example.task,
            "prompt": decode(one.episode.prompt_ids),
            "finish_reason": one.episode.finish_reason,
            "tokens": _token_rows(one, column, decode=decode),
            **_asked(one),
        }
        for one, column in islice(pairs, num_rollouts)
    ]


def _asked(one: ScoredEpisode) -> AskedOf:
    if one.teacher_prompt_ids is None:
        return {}
    return {"teacher": one.teacher, "teacher_prompt_ids": one.teacher_prompt_ids.tolist()}


def _token_rows(one: ScoredEpisode, column: StudentColumns, *, decode: Decode) -> list[TokenRow]:
    prompt_ids, ids = one.episode.prompt_ids, one.episode.response_ids
    row_of_position = {int(position): row for row, position in enumerate(one.scores.positions_N)}
    tokens: list[TokenRow] = []
    for position, text in enumerate(token_texts(prompt_ids, ids, decode=decode)):
        row, student_logprob = row_of_position.get(position), float(one.episode.student.logprobs_T[position])
        token: TokenRow = {
            "text": text,
            "id": int(ids[position]),
            "status": _status(int(one.scores.status_T[position]), is_scored=row is not None),
            "student_logprob": _finite(student_logprob),
        }
        if row is not None:
            teacher_logprob = float(one.scores.sampled_logprobs_N[row])
            token["teacher_logprob"] = _finite(teacher_logprob)
            token["signal"] = _finite(teacher_logprob - student_logprob)
            token["loss"] = _finite(float(column.losses_N[row]))
            token["tail_mass"] = _short(math.exp(float(one.scores.log_tail_mass_N[row])))
            token["support"] = _likeliest(one, row, before=(*prompt_ids, *ids[:position])[-1:], decode=decode)
        tokens.append(token)
    return tokens


def _likeliest(one: ScoredEpisode, row: int, *, before: Sequence[int], decode: Decode) -> list[tuple[str, float]]:
    ids_K, logprobs_K = one.scores.support_ids_NK[row], one.scores.support_logprobs_NK[row]
    # What is -inf fills the row up and is no part of the support.
    inside = np.flatnonzero(np.isfinite(logprobs_K))[:NUM_SHOWN_TOKENS]
    return [
        (token_text(int(ids_K[k]), before=before, decode=decode), _short(math.exp(float(logprobs_K[k]))))
        for k in inside
    ]


def _status(status: int, *, is_scored: bool) -> str:
    if status == PositionStatus.OK and not is_scored:
        return SINGLE_SUPPORT
    return PositionStatus(status).name.lower()


def _finite(number: float) -> float | None:
    return _short(number) if math.isfinite(number) else None


def _short(number: float) -> float:
    return float(f"{number:.5g}")
