"""Every way in which the logprobs of named ids can be wrong is found, and named by response and column."""

# N = scored positions, K = support size, C = candidates per position

from __future__ import annotations

from collections.abc import Awaitable

import numpy as np
import pytest
from preceptor.v1 import teacher_pb2
from preceptor.wire import LogprobDtype, PositionStatus
from preceptor_client import GroupScores, TeacherClient, TeacherIds
from preceptor_client.errors import CorruptAnswerError

from tests.unit.client.corruptions import FIRST, SECOND, Change, K, column, move_all, numbers, put, then, unmapped
from tests.unit.client.scripted_teacher import Lie, ScriptedTeacher, serving

NAMED = np.array([[21, 21, 40, 50], [6, 32, 41, 51], [7, 80, 42, 52]])
"""Of the second response: the sampled token stands in every row, and in the support; id 40 and others do not."""


async def ask_named(change: Change, *, ids: np.ndarray = NAMED, dtype: LogprobDtype = LogprobDtype.F16) -> GroupScores:
    """Candidates of the second response, and none of the first."""
    async with serving(ScriptedTeacher([Lie(change=change)])) as address, TeacherClient(address) as client:
        return await client.score(
            TeacherIds([1]), [FIRST, SECOND], top_k=K, candidate_ids=[None, ids], logprob_dtype=dtype
        )


def of_first(data: bytes) -> Change:
    return lambda answer: setattr(answer.responses[0], "candidate_logprobs", data)


CANDIDATE_CORRUPTIONS: dict[str, tuple[Change, str]] = {
    "absent": (column("candidate_logprobs", lambda data: b""), "holds 0 entries instead of 12"),
    "truncated": (column("candidate_logprobs", lambda data: data[:-2]), "holds 11 entries instead of 12"),
    "too long": (column("candidate_logprobs", lambda data: data * 2), "holds 24 entries instead of 12"),
    "torn": (column("candidate_logprobs", lambda data: data[:-1]), "has 23 bytes"),
    "NaN": (numbers("candidate_logprobs", "<f2", put(11, np.nan)), "of row 2 holds a NaN"),
    "positive": (numbers("candidate_logprobs", "<f2", put(6, 0.5)), "of row 1 holds a logprob above 0"),
    "below the support's": (
        numbers("candidate_logprobs", "<f2", put(1, -9.0)),
        "of row 0 gives id 21 -9.0000, while the row's support gives it",
    ),
    "above the support": (
        numbers("candidate_logprobs", "<f2", put(10, -0.01)),
        "of row 2 gives id 42 -0.0100, while the row's support lacks it and ends at",
    ),
    "infinite for what the support holds": (
        numbers("candidate_logprobs", "<f2", put(5, -np.inf)),
        "of row 1 gives id 32 -inf, while the row's support gives it",
    ),
    "rows shifted": (column("candidate_logprobs", lambda data: data[8:] + data[:8]), "of row 0 gives id"),
}


async def test_named_ids_are_inside_the_support_and_outside_it() -> None:
    scores = (await ask_named(lambda answer: None)).responses[1]
    is_inside_NC = (NAMED[:, :, None] == scores.support_ids_NK[:, None, :]).any(axis=2)
    assert is_inside_NC[:, :2].tolist() == [[True, True], [False, True], [False, True]]
    assert not is_inside_NC[:, 2:].any()


@pytest.mark.parametrize("name", CANDIDATE_CORRUPTIONS)
async def test_corruption_of_candidates_is_found_and_named(name: str) -> None:
    change, says = CANDIDATE_CORRUPTIONS[name]
    with pytest.raises(CorruptAnswerError) as caught:
        await ask_named(change)
    assert str(caught.value).startswith("responses[1].candidate_logprobs")
    assert says in str(caught.value)


async def test_candidates_that_nobody_named_are_refused() -> None:
    with pytest.raises(CorruptAnswerError, match=r"responses\[0\].candidate_logprobs holds 2 entries instead of 0"):
        await ask_named(of_first(bytes(4)))


@pytest.mark.parametrize(
    ("dtype", "by", "is_refused"),
    [
        (LogprobDtype.F32, 0.0005, False),
        (LogprobDtype.F32, 0.002, True),
        (LogprobDtype.F16, 0.0005, False),
        (LogprobDtype.F16, 0.02, True),
    ],
)
async def test_candidate_may_differ_from_the_support_by_rounding(
    dtype: LogprobDtype, by: float, is_refused: bool
) -> None:
    change = numbers("candidate_logprobs", "<f2" if dtype is LogprobDtype.F16 else "<f4", move_all(-by))
    if is_refused:
        with pytest.raises(CorruptAnswerError, match="the row's support gives it"):
            await ask_named(change, dtype=dtype)
    else:
        await ask_named(change, dtype=dtype)


async def test_sampled_token_outside_the_support_has_the_sampled_logprob_as_a_candidate() -> None:
    def lower(answer: teacher_pb2.ScoreResponse) -> None:
        logprobs_N = np.frombuffer(answer.responses[0].candidate_logprobs, "<f4").copy()
        logprobs_N[0] -= 1
        answer.responses[0].candidate_logprobs = logprobs_N.tobytes()

    teacher = ScriptedTeacher([Lie(change=lower)])
    async with serving(teacher) as address, TeacherClient(address) as client:

        def ask_for_the_sampled() -> Awaitable[GroupScores]:
            named = np.array(FIRST)[:, None]
            return client.score(
                TeacherIds([1]), [FIRST], top_k=1, candidate_ids=[named], logprob_dtype=LogprobDtype.F32
            )

        with pytest.raises(CorruptAnswerError, match=r"gives id 10 .*, while it is the sampled token, which has"):
            await ask_for_the_sampled()
        scores = (await ask_for_the_sampled()).responses[0]
    assert not (scores.support_ids_NK == np.array(FIRST)[:, None]).any()
    assert scores.candidate_logprobs_NC is not None
    assert scores.candidate_logprobs_NC[:, 0].tolist() == scores.sampled_logprobs_N.tolist()


@pytest.mark.parametrize(("mass", "is_refused"), [(0.0, True), (1e-6, False)])
async def test_candidates_may_lie_above_the_support_only_where_mass_has_no_place(mass: float, is_refused: bool) -> None:
    change = then(numbers("candidate_logprobs", "<f2", put(10, -0.5)), unmapped(mass))
    if is_refused:
        with pytest.raises(CorruptAnswerError, match=r"gives id 42 -0\.5000"):
            await ask_named(change)
    else:
        await ask_named(change)


def certain(candidate: float) -> Change:
    """A row of two tokens, the second of which is impossible, and what a third has besides."""

    def change(answer: teacher_pb2.ScoreResponse) -> None:
        scores = answer.responses[1]
        scores.support_logprobs = np.array([[0.0, -np.inf, -np.inf, -np.inf]] * 3, "<f2").tobytes()
        scores.support_ids = np.array([[token, token, token, token] for token in SECOND], "<u2").tobytes()
        scores.log_tail_mass = np.full(3, -np.inf, "<f4").tobytes()
        scores.sampled_logprobs = np.zeros(3, "<f4").tobytes()
        scores.candidate_logprobs = np.array([[0.0, candidate]] * 3, "<f2").tobytes()

    return change


@pytest.mark.parametrize(("candidate", "is_refused"), [(-np.inf, False), (-150.0, False), (-50.0, True), (0.0, True)])
async def test_row_that_is_filled_up_leaves_nothing_to_a_candidate(candidate: float, is_refused: bool) -> None:
    ids = np.array([[token, 1] for token in SECOND])
    if is_refused:
        with pytest.raises(CorruptAnswerError, match=r"of row 0 gives id 1 .* lacks it and ends at"):
            await ask_named(certain(candidate), ids=ids)
    else:
        scores = (await ask_named(certain(candidate), ids=ids)).responses[1]
        assert scores.candidate_logprobs_NC is not None
        assert scores.candidate_logprobs_NC[:, 1].tolist() == [candidate] * 3


async def test_response_without_a_row_has_candidates_of_no_row() -> None:
    def lose_all(answer: teacher_pb2.ScoreResponse) -> None:
        scores = answer.responses[1]
        scores.status = bytes([PositionStatus.NON_FINITE] * 3)
        for name in ("support_ids", "support_logprobs", "sampled_logprobs", "log_tail_mass", "entropies"):
            setattr(scores, name, b"")
        scores.candidate_logprobs = b""

    scores = (await ask_named(lose_all)).responses[1]
    assert scores.candidate_ids_NC is not None
    assert scores.candidate_logprobs_NC is not None
    assert scores.candidate_ids_NC.shape == scores.candidate_logprobs_NC.shape == (0, 4)
