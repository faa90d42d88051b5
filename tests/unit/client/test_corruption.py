"""Every way in which an answer can be wrong is found, and named by response and column."""

# N = scored positions, K = support size

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from preceptor.v1 import teacher_pb2
from preceptor.wire import LogprobDtype
from preceptor_client import TeacherClient, TeacherIds, Text
from preceptor_client.errors import CorruptAnswerError

from tests.unit.client.scripted_teacher import Lie, ScriptedTeacher, dense_logprobs, serving

K = 4
FIRST = [10, 20, 30]
# The teacher's own favourites, so that the sampled token is inside the support.
SECOND = [40, 50, 60]
Change = Callable[[teacher_pb2.ScoreResponse], None]


def header(name: str, value: object) -> Change:
    return lambda answer: setattr(answer, name, value)


def column(name: str, edit: Callable[[bytes], bytes]) -> Change:
    """Changes one column of the second response."""

    def change(answer: teacher_pb2.ScoreResponse) -> None:
        scores = answer.responses[1]
        setattr(scores, name, edit(getattr(scores, name)))

    return change


def numbers(name: str, dtype: str, edit: Callable[[np.ndarray], None]) -> Change:  # type: ignore[type-arg] # any dtype
    """Changes the numbers of one column of the second response, in place."""

    def edit_bytes(data: bytes) -> bytes:
        values = np.frombuffer(data, dtype).copy()
        edit(values)
        return values.tobytes()

    return column(name, edit_bytes)


def put(position: int, value: float) -> Callable[[np.ndarray], None]:  # type: ignore[type-arg] # any dtype
    def edit(values: np.ndarray) -> None:  # type: ignore[type-arg] # any dtype
        values[position] = value

    return edit


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


def reverse_logprobs(values: np.ndarray) -> None:  # type: ignore[type-arg] # any dtype
    values[:K] = values[:K][::-1].copy()


def move_all(by: float) -> Callable[[np.ndarray], None]:  # type: ignore[type-arg] # any dtype
    def edit(values: np.ndarray) -> None:  # type: ignore[type-arg] # any dtype
        values += values.dtype.type(by)

    return edit


CORRUPTIONS: dict[str, tuple[Change, str]] = {
    "request_id": (header("request_id", "other"), "request_id"),
    "top_k": (header("top_k", K - 1), "top_k"),
    "temperature": (header("temperature", 2.0), "temperature"),
    "logprob_dtype": (header("logprob_dtype", teacher_pb2.LOGPROB_DTYPE_F32), "logprob_dtype"),
    "teacher": (header("teacher", "someone"), "teacher"),
    "adapter": (header("adapter", "law"), "adapter"),
    "tokenizer": (header("tokenizer_id", "other"), "tokenizer_id"),
    "token dtype unknown": (header("token_dtype", 0), "responses[0].support_ids"),
    "token dtype other": (header("token_dtype", teacher_pb2.TOKEN_DTYPE_U32), "responses[0].support_ids"),
    "response missing": (lambda answer: answer.responses.pop() and None, "responses (their number)"),
    "responses swapped": (swap_responses, "responses[0].digest"),
    "digest wrong": (column("digest", lambda data: bytes(32)), "responses[1].digest"),
    "digest absent": (column("digest", lambda data: b""), "responses[1].digest"),
    "status short": (column("status", lambda data: data[1:]), "responses[1].status"),
    "status unknown": (column("status", lambda data: b"\x09" + data[1:]), "responses[1].status"),
    "status excluded unasked": (column("status", lambda data: b"\x02" + data[1:]), "responses[1]."),
    "support_ids truncated": (column("support_ids", lambda data: data[:-2]), "responses[1].support_ids"),
    "support_ids odd": (column("support_ids", lambda data: data[:-1]), "responses[1].support_ids"),
    "support_ids repeated": (numbers("support_ids", "<u2", lambda v: put(1, v[0])(v)), "responses[1].support_ids"),
    "support_logprobs truncated": (column("support_logprobs", lambda data: data[:-2]), "responses[1].support_logprobs"),
    "support_logprobs too long": (column("support_logprobs", lambda d: d + d), "responses[1].support_logprobs"),
    "support_logprobs odd": (column("support_logprobs", lambda data: data[:-1]), "responses[1].support_logprobs"),
    "support_logprobs NaN": (numbers("support_logprobs", "<f2", put(5, np.nan)), "responses[1].support_logprobs"),
    "support_logprobs positive": (numbers("support_logprobs", "<f2", put(0, 0.5)), "responses[1].support_logprobs"),
    "support_logprobs unsorted": (numbers("support_logprobs", "<f2", reverse_logprobs), "responses[1].support_logpr"),
    "mass too small": (numbers("support_logprobs", "<f2", move_all(-0.1)), "responses[1].log_tail_mass"),
    "tail too large": (numbers("log_tail_mass", "<f4", put(1, -0.01)), "responses[1].log_tail_mass"),
    "tail NaN": (numbers("log_tail_mass", "<f4", put(1, np.nan)), "responses[1].log_tail_mass"),
    "tail truncated": (column("log_tail_mass", lambda data: data[:-4]), "responses[1].log_tail_mass"),
    "sampled truncated": (column("sampled_logprobs", lambda data: data[:-4]), "responses[1].sampled_logprobs"),
    "sampled odd": (column("sampled_logprobs", lambda data: data[:-3]), "responses[1].sampled_logprobs"),
    "sampled NaN": (numbers("sampled_logprobs", "<f4", put(0, np.nan)), "responses[1].sampled_logprobs"),
    "sampled off": (numbers("sampled_logprobs", "<f4", move_all(-0.01)), "responses[1].sampled_logprobs"),
    "entropy NaN": (numbers("entropies", "<f4", put(0, np.nan)), "responses[1].entropies"),
    "entropy negative": (numbers("entropies", "<f4", put(0, -0.1)), "responses[1].entropies"),
    "entropies missing": (column("entropies", lambda data: b""), "responses[1].entropies"),
    "rows shifted": (shift_rows, "responses[1].sampled_logprobs"),
}


@pytest.fixture(scope="module")
def favourites() -> list[int]:
    """A response whose every token is among the likeliest of the scripted teacher, found by search."""
    for last in range(97):
        ids = [first_two for first_two in (0, 0)] + [last]
        for seed_sum in range(97):
            logprobs_TV = dense_logprobs(np.array([seed_sum, 0, 0]), temperature=1.0)
            ids = [int(row.argmax()) for row in logprobs_TV]
            if sum(ids) == seed_sum:
                return ids
    raise AssertionError("the scripted teacher has no fixed point among small sums")
