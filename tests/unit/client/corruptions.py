"""Answers that were tampered with, for tests: each change is one that a client must find."""

# N = scored positions, K = support size

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from preceptor.v1 import teacher_pb2
from preceptor_client import GroupScores, TeacherClient, TeacherIds

from tests.unit.client.scripted_teacher import Lie, ScriptedTeacher, serving

K = 4
FIRST = [10, 20, 30]
# The teacher's own favourites, so that the sampled token is inside the support.
SECOND = [21, 32, 80]
TOKEN_U16 = teacher_pb2.TOKEN_DTYPE_U16
Change = Callable[[teacher_pb2.ScoreResponse], None]


def header(name: str, value: object) -> Change:
    return lambda answer: setattr(answer, name, value)


def column(name: str, edit: Callable[[bytes], bytes]) -> Change:
    """Changes one column of the second response."""

    def change(answer: teacher_pb2.ScoreResponse) -> None:
        scores = answer.responses[1]
        setattr(scores, name, edit(getattr(scores, name)))

    return change


def numbers(name: str, dtype: str, edit: Callable[[np.ndarray], None]) -> Change:
    """Changes the numbers of one column of the second response, in place."""

    def edit_bytes(data: bytes) -> bytes:
        values = np.frombuffer(data, dtype).copy()
        edit(values)
        return values.tobytes()

    return column(name, edit_bytes)


def put(position: int | slice, value: float | np.ndarray) -> Callable[[np.ndarray], None]:
    def edit(values: np.ndarray) -> None:
        values[position] = value

    return edit


def unmapped(mass: float) -> Change:
    return lambda answer: setattr(answer.responses[1], "unmapped_mass", mass)


def drop_response(answer: teacher_pb2.ScoreResponse) -> None:
    del answer.responses[-1]


def swap_responses(answer: teacher_pb2.ScoreResponse) -> None:
    swapped = [answer.responses[1], answer.responses[0]]
    del answer.responses[:]
    answer.responses.extend(swapped)


def shift_rows(answer: teacher_pb2.ScoreResponse) -> None:
    """All columns of the second response slide by one position: each row alone is a good distribution."""
    scores = answer.responses[1]
    for name, width in (
        ("support_ids", 2 * K),
        ("support_logprobs", 2 * K),
        ("log_tail_mass", 4),
        ("entropies", 4),
    ):
        data = getattr(scores, name)
        setattr(scores, name, data[width:] + data[:width])


def reverse_logprobs(values: np.ndarray) -> None:
    values[:K] = values[:K][::-1].copy()


def read_as(ids: list[int], rows: list[int]) -> Change:
    """The second response was scored as other ids, under a policy that allows it."""

    def change(answer: teacher_pb2.ScoreResponse) -> None:
        answer.segmentation = teacher_pb2.SEGMENTATION_POLICY_CANONICAL
        scores = answer.responses[1]
        scores.teacher_ids.data = np.array(ids, "<u2").tobytes()
        scores.teacher_ids.dtype = teacher_pb2.TOKEN_DTYPE_U16
        scores.teacher_rows = np.array(rows, "<u4").tobytes()

    return change


def then(*changes: Change) -> Change:
    def change(answer: teacher_pb2.ScoreResponse) -> None:
        for each in changes:
            each(answer)

    return change


def pad(answer: teacher_pb2.ScoreResponse) -> None:
    """Of each row of the second response one entry is left, and the sampled token has it."""
    scores = answer.responses[1]
    sampled_N = np.frombuffer(scores.sampled_logprobs, "<f4")
    logprobs_NK = np.full((3, K), -np.inf, "<f2")
    logprobs_NK[:, 0] = sampled_N
    scores.support_logprobs = logprobs_NK.tobytes()
    scores.support_ids = np.repeat(np.array(SECOND, "<u2")[:, None], K, axis=1).tobytes()
    scores.log_tail_mass = np.log1p(-np.exp(sampled_N)).astype("<f4").tobytes()


def move_all(by: float) -> Callable[[np.ndarray], None]:
    def edit(values: np.ndarray) -> None:
        values += values.dtype.type(by)

    return edit


async def ask(change: Change, *, masks: list[list[int]] | None = None, top_k: int = K) -> GroupScores:
    async with serving(ScriptedTeacher([Lie(change=change)])) as address, TeacherClient(address) as client:
        return await client.score(
            TeacherIds([1]), [FIRST, SECOND], top_k=top_k, teacher="tutor", tokenizer_id="tok", score_masks=masks
        )
