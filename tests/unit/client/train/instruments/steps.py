"""Scored rollouts for tests: written by hand token by token, or drawn with all that makes a step hard to measure."""

# T = tokens of a response, N = its scored positions, K = support size

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from preceptor.wire import PositionStatus
from preceptor_client.train.data.examples import Example
from preceptor_client.train.learner.columns import StudentColumns
from preceptor_client.train.rollout.episode import single_turn
from preceptor_client.train.student.view import StudentView
from preceptor_client.train.teacher.scored import ScoredEpisode
from preceptor_client.types import ResponseScores

END = 2
OTHER_END = 3
K = 4
Step = tuple[list[ScoredEpisode], list[StudentColumns]]


@dataclass(frozen=True, kw_only=True)
class Token:
    """One token of a response; what a test does not name is unremarkable. Without a score it has another status."""

    id: int
    student: float = -1.0
    teacher: float = -1.5
    support: tuple[int, ...] = (10, 11, 12, 13)
    logprobs: tuple[float, ...] = (-1.0, -2.0, -3.0, -4.0)
    status: PositionStatus = PositionStatus.OK
    tail: float = 0.25
    student_entropy: float = 1.25
    teacher_entropy: float | None = 0.75
    """None, in all tokens of a response, of a teacher that does not compute them."""
    loss: float = 0.5
    mass: float = math.nan
    overlap: float = math.nan


def response(*tokens: Token, task: str = "", is_cut: bool | None = None) -> tuple[ScoredEpisode, StudentColumns]:
    """A response of these tokens; it was cut unless it ends with an end token, or as is said."""
    rows = [token for token in tokens if token.status == PositionStatus.OK]
    if is_cut is None:
        is_cut = tokens[-1].id not in (END, OTHER_END)
    rollout = single_turn(
        example=Example(index=0, prompt="a", task=task),
        slot=0,
        prompt_ids=(1,),
        response_ids=tuple(token.id for token in tokens),
        finish_reason="length" if is_cut else "stop",
        student=StudentView(
            logprobs_T=_floats([token.student for token in tokens]),
            entropies_T=_floats([token.student_entropy for token in tokens]),
        ),
    )
    with np.errstate(divide="ignore"):
        log_tail_N = np.log(_floats([token.tail for token in rows]))
    scores = ResponseScores(
        status_T=np.array([token.status for token in tokens], np.uint8),
        positions_N=np.array([i for i, token in enumerate(tokens) if token.status == PositionStatus.OK], np.int64),
        support_ids_NK=np.array([token.support for token in rows], np.int64).reshape(len(rows), K),
        support_logprobs_NK=np.array([token.logprobs for token in rows], np.float32).reshape(len(rows), K),
        sampled_logprobs_N=_floats([token.teacher for token in rows]),
        log_tail_mass_N=log_tail_N,
        entropies_N=_entropies(rows),
    )
    columns = StudentColumns(
        losses_N=_floats([token.loss for token in rows]),
        masses_N=_floats([token.mass for token in rows]),
        overlaps_N=_floats([token.overlap for token in rows]),
    )
    return ScoredEpisode(episode=rollout, scores=scores), columns


def _entropies(rows: Sequence[Token]) -> np.ndarray[tuple[int], np.dtype[np.float32]] | None:
    entropies = [token.teacher_entropy for token in rows if token.teacher_entropy is not None]
    return _floats(entropies) if len(entropies) == len(rows) else None


def step_of(*responses: tuple[ScoredEpisode, StudentColumns]) -> Step:
    return [scored for scored, _ in responses], [columns for _, columns in responses]


def random_step(seed: int, *, tasks: Sequence[str] = ("",), longest: int = 90) -> Step:
    """Few distinct tokens, so that text repeats; fillers, lost positions, -inf at the teacher, few masses."""
    rng = np.random.default_rng(seed)
    return step_of(
        *(
            response(*_random_tokens(rng, longest=longest), task=str(rng.choice(list(tasks))))
            for _ in range(rng.integers(1, 9))
        )
    )


def _random_tokens(rng: np.random.Generator, *, longest: int) -> list[Token]:
    length = int(rng.choice([1, 2, 5, longest]))
    ids = [int(token) for token in rng.integers(4, 8, size=length)]
    if rng.random() < 0.5:
        ids[-1] = int(rng.choice([END, OTHER_END]))
    return [_random_token(rng, token) for token in ids]


def _random_token(rng: np.random.Generator, token: int) -> Token:
    num_left = int(rng.integers(2, K + 1))
    logprobs = sorted((-float(value) for value in rng.exponential(size=num_left)), reverse=True)
    teacher = float(rng.choice([-math.inf, -120.0, -100.0, -20.0, -0.5, -float(rng.exponential())]))
    is_measured = rng.random() < 0.3
    return Token(
        id=token,
        student=float(rng.choice([-0.05, -float(rng.exponential()), -5.0])),
        teacher=teacher,
        # Ids stand in a filler's place too, the student's own among them.
        support=tuple(int(one) for one in rng.permutation(9)[:K]),
        logprobs=(*logprobs, *[-math.inf] * (K - num_left)),
        status=PositionStatus(int(rng.choice([1, 1, 1, 1, 2, 4, 5]))),
        tail=float(rng.choice([0.0, 1.0, rng.random()])),
        student_entropy=float(rng.exponential()),
        teacher_entropy=float(rng.exponential()),
        loss=float(rng.exponential()),
        mass=float(rng.random()) if is_measured else math.nan,
        overlap=float(rng.integers(0, K + 1)) / K if is_measured else math.nan,
    )


def _floats(values: Sequence[float]) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    return np.array(values, np.float32)
