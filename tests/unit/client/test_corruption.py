"""Every way in which an answer can be wrong is found, and named by response and column."""

# N = scored positions, K = support size

from __future__ import annotations

import numpy as np
import pytest
from preceptor.v1 import teacher_pb2
from preceptor.wire import LogprobDtype, PositionStatus, SegmentationPolicy
from preceptor_client import TeacherClient, TeacherIds, Text
from preceptor_client.errors import CorruptAnswerError

from tests.unit.client.corruptions import (
    FIRST,
    SECOND,
    TOKEN_U16,
    Change,
    K,
    ask,
    column,
    drop_response,
    header,
    move_all,
    numbers,
    pad,
    put,
    read_as,
    reverse_logprobs,
    shift_rows,
    swap_responses,
    then,
    unmapped,
)
from tests.unit.client.scripted_teacher import Lie, ScriptedTeacher, dense_logprobs, serving

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
    "response missing": (drop_response, "responses (their number)"),
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
    "entropies missing": (column("entropies", lambda data: b""), "responses[1].entropies is empty, while other"),
    "entropies truncated": (column("entropies", lambda data: data[:-4]), "responses[1].entropies holds 2 entries"),
    "policy absent": (header("segmentation", 0), "segmentation is 0"),
    "policy unknown": (header("segmentation", 9), "segmentation is 9"),
    "prompt other": (
        lambda answer: answer.prompt_ids.MergeFrom(teacher_pb2.TokenIds(data=b"\x02\x00", dtype=TOKEN_U16)),
        "prompt_ids are others",
    ),
    "prompt empty": (
        lambda answer: answer.prompt_ids.MergeFrom(teacher_pb2.TokenIds(dtype=TOKEN_U16)),
        "prompt_ids is",
    ),
    "teacher_rows shifted": (read_as([7, 8, 9], [1, 2, 3]), "responses[1].teacher_rows of row 2 is outside"),
    "teacher_rows from below 0": (read_as([7, 8, 9], [2**32 - 1, 0, 1]), "responses[1].teacher_rows of row 0 is out"),
    "teacher_rows repeated": (read_as([7, 8, 9], [1, 1, 1]), "responses[1].teacher_rows of row 2 is a third one"),
    "teacher_rows descending": (read_as([7, 8, 9], [0, 2, 1]), "responses[1].teacher_rows of row 2 is below"),
    "teacher_rows short": (read_as([7, 8, 9], [0, 1]), "responses[1].teacher_rows holds 2 entries instead of 3"),
    "teacher_rows absent": (read_as([7, 8, 9], []), "responses[1].teacher_rows holds 0 entries instead of 3"),
    "teacher_rows torn": (
        then(read_as([7, 8, 9], [0, 1, 2]), column("teacher_rows", lambda data: data[:-1])),
        "responses[1].teacher_rows",
    ),
    "teacher_rows alone": (column("teacher_rows", lambda data: bytes(12)), "responses[1].teacher_rows point into"),
    "teacher_rows not the positions": (
        then(read_as([7, 8, 9, 5], [0, 1, 3]), header("segmentation", teacher_pb2.SEGMENTATION_POLICY_MASK)),
        "responses[1].teacher_rows of row 2 is not its position, though MASK",
    ),
    "teacher_ids torn": (
        then(read_as([7, 8, 9], [0, 1, 2]), lambda answer: setattr(answer.responses[1].teacher_ids, "data", b"1")),
        "responses[1].teacher_ids",
    ),
    "teacher_ids without dtype": (
        then(read_as([7, 8, 9], [0, 1, 2]), lambda answer: answer.responses[1].teacher_ids.ClearField("dtype")),
        "responses[1].teacher_ids",
    ),
    "unmapped mass NaN": (unmapped(np.nan), "responses[1].unmapped_mass is nan"),
    "unmapped mass infinite": (unmapped(np.inf), "responses[1].unmapped_mass is inf, a mass"),
    "unmapped mass negative": (unmapped(-0.01), "responses[1].unmapped_mass is -0.0"),
    "unmapped mass above 1": (unmapped(1.5), "responses[1].unmapped_mass is 1.5, a mass is in [0, 1]"),
    "unmapped mass above the tail": (unmapped(0.99), "responses[1].unmapped_mass is 0.9900, more than"),
    "padded row of two finite": (
        then(pad, numbers("support_logprobs", "<f2", put(1, -9.0))),
        "responses[1].support_ids of row 0 repeats an id",
    ),
    "padded row empty": (
        then(pad, numbers("support_logprobs", "<f2", put(K, -np.inf))),
        "responses[1].support_logprobs of row 1 is empty",
    ),
    "padding in front": (
        then(pad, numbers("support_logprobs", "<f2", lambda v: put(slice(0, 2), v[[1, 0]])(v))),
        "responses[1].support_logprobs of row 0 is not sorted",
    ),
    "padded row without the sampled token": (
        then(pad, numbers("support_ids", "<u2", put(slice(0, K), 5))),
        "responses[1].sampled_logprobs of row 0",
    ),
    "sampled token as padding": (
        then(pad, numbers("support_ids", "<u2", put(0, 5))),
        "responses[1].sampled_logprobs of row 0",
    ),
    "rows shifted": (shift_rows, "responses[1].sampled_logprobs"),
}


def test_second_response_is_inside_the_teachers_support() -> None:
    for row, token in zip(dense_logprobs(np.array(SECOND), temperature=1.0), SECOND, strict=True):
        assert token in np.argsort(-row)[:K]


async def test_unchanged_answer_is_accepted() -> None:
    await ask(lambda answer: None)


@pytest.mark.parametrize("name", CORRUPTIONS)
async def test_corruption_is_found_and_named(name: str) -> None:
    change, says = CORRUPTIONS[name]
    with pytest.raises(CorruptAnswerError) as caught:
        await ask(change)
    assert str(caught.value).startswith(says)


async def test_padded_row_is_a_distribution_of_fewer_tokens() -> None:
    scores = (await ask(pad)).responses[1]
    assert np.isfinite(scores.support_logprobs_NK).sum(axis=1).tolist() == [1, 1, 1]
    assert scores.support_ids_NK[:, 0].tolist() == SECOND


async def test_sampled_token_of_no_mass_may_lack_in_a_padded_row() -> None:
    def no_mass(answer: teacher_pb2.ScoreResponse) -> None:
        pad(answer)
        numbers("support_ids", "<u2", put(slice(0, K), 5))(answer)
        numbers("sampled_logprobs", "<f4", put(0, -np.inf))(answer)

    assert (await ask(no_mass)).responses[1].sampled_logprobs_N[0] == -np.inf


@pytest.mark.parametrize("asked", [SegmentationPolicy.AS_IS, SegmentationPolicy.CANONICAL])
async def test_policy_other_than_asked_is_refused(asked: SegmentationPolicy) -> None:
    lie = Lie(change=header("segmentation", teacher_pb2.SEGMENTATION_POLICY_MASK))
    async with serving(ScriptedTeacher([lie])) as address, TeacherClient(address) as client:
        with pytest.raises(CorruptAnswerError, match=f"segmentation: the request said '{asked.name}', .* says 'MASK'"):
            await client.score(TeacherIds([1]), [FIRST], top_k=K, segmentation=asked)


@pytest.mark.parametrize("rows", [[0, 1, 2], [0, 2, 5]])
async def test_rows_anywhere_in_the_teachers_reading_are_accepted(rows: list[int]) -> None:
    decoded = (await ask(read_as([7, 8, 9, 7, 8, 9], rows))).responses[1].teacher_rows_N
    assert decoded is not None
    assert decoded.tolist() == rows


@pytest.mark.parametrize("status", ["SPECIAL", "MISALIGNED", "UNMAPPED", "BEYOND_CONTEXT"])
async def test_position_without_a_counterpart_has_no_row(status: str) -> None:
    def drop_last(answer: teacher_pb2.ScoreResponse) -> None:
        scores = answer.responses[1]
        scores.status = bytes([1, 1, PositionStatus[status]])
        for name in ("support_ids", "support_logprobs", "sampled_logprobs", "log_tail_mass", "entropies"):
            data = getattr(scores, name)
            setattr(scores, name, data[: len(data) // 3 * 2])

    scores = (await ask(drop_last)).responses[1]
    assert scores.positions_N.tolist() == [0, 1]
    assert scores.scored_share == pytest.approx(2 / 3)
    with pytest.raises(CorruptAnswerError, match=r"responses\[1\].support_ids holds 12 entries instead of 8"):
        await ask(column("status", lambda data: data[:2] + bytes([PositionStatus[status]])))


async def test_whole_vocabulary_with_mass_outside_is_refused() -> None:
    with pytest.raises(CorruptAnswerError, match=r"responses\[1\].log_tail_mass"):
        await ask(numbers("log_tail_mass", "<f4", put(0, -2.0)), top_k=97)


async def test_mask_that_the_server_ignored_is_found() -> None:
    def ignore_mask(answer: teacher_pb2.ScoreResponse) -> None:
        scores = answer.responses[1]
        scores.status = b"\x01\x01\x01"
        for name, width in (("support_ids", 2 * K), ("support_logprobs", 2 * K)):
            setattr(scores, name, getattr(scores, name) + getattr(scores, name)[-width:])
        for name in ("sampled_logprobs", "log_tail_mass", "entropies"):
            setattr(scores, name, getattr(scores, name) + getattr(scores, name)[-4:])

    with pytest.raises(CorruptAnswerError, match=r"responses\[1\].status says that position 1 is not excluded"):
        await ask(ignore_mask, masks=[[1, 1, 1], [1, 0, 1]])


async def test_teacher_that_computes_no_entropies_is_believed() -> None:
    def leave_out(answer: teacher_pb2.ScoreResponse) -> None:
        for scores in answer.responses:
            scores.entropies = b""

    assert [scores.entropies_N for scores in (await ask(leave_out)).responses] == [None, None]


async def test_response_without_a_row_has_no_say_in_whether_entropies_are_computed() -> None:
    def empty_the_first(answer: teacher_pb2.ScoreResponse) -> None:
        scores = answer.responses[0]
        scores.status = b"\x03" * len(scores.status)
        for name in ("support_ids", "support_logprobs", "sampled_logprobs", "log_tail_mass", "entropies"):
            setattr(scores, name, b"")

    first, second = (await ask(empty_the_first)).responses
    assert first.entropies_N is not None
    assert second.entropies_N is not None
    assert (len(first.entropies_N), len(second.entropies_N)) == (0, 3)


async def test_mask_at_other_positions_is_found() -> None:
    with pytest.raises(CorruptAnswerError, match=r"responses\[1\].status says that position 0 is excluded"):
        await ask(column("status", lambda data: data[::-1]), masks=[[1, 1, 1], [1, 1, 0]])


async def test_position_that_the_teacher_could_not_score_is_no_corruption() -> None:
    def drop_last(answer: teacher_pb2.ScoreResponse) -> None:
        scores = answer.responses[1]
        scores.status = b"\x01\x01\x03"
        for name in ("support_ids", "support_logprobs", "sampled_logprobs", "log_tail_mass", "entropies"):
            data = getattr(scores, name)
            setattr(scores, name, data[: len(data) // 3 * 2])

    await ask(drop_last)


@pytest.mark.parametrize(("by", "is_refused"), [(0.005, False), (0.02, True)])
async def test_mass_in_half_precision_may_be_off_by_a_hundredth(by: float, is_refused: bool) -> None:
    # Moving every logprob of the support by x moves its mass, here above 0.9, by about x.
    change = numbers("support_logprobs", "<f2", move_all(-by))

    def move_tokens_too(answer: teacher_pb2.ScoreResponse) -> None:
        change(answer)
        numbers("sampled_logprobs", "<f4", move_all(-by))(answer)

    if is_refused:
        with pytest.raises(CorruptAnswerError, match="log_tail_mass and support_logprobs"):
            await ask(move_tokens_too, top_k=64)
    else:
        await ask(move_tokens_too, top_k=64)


async def test_mass_in_single_precision_may_be_off_by_a_thousandth() -> None:
    def move(answer: teacher_pb2.ScoreResponse) -> None:
        for scores in answer.responses:
            moved = np.frombuffer(scores.support_logprobs, "<f4") - np.float32(0.005)
            scores.support_logprobs = moved.tobytes()

    async with serving(ScriptedTeacher([Lie(change=move)])) as address, TeacherClient(address) as client:
        with pytest.raises(CorruptAnswerError, match="log_tail_mass and support_logprobs"):
            await client.score(TeacherIds([1]), [SECOND], top_k=64, logprob_dtype=LogprobDtype.F32)


def sharpen(*, sampled: float) -> Change:
    """A teacher that is certain of id 1, and gives the first response's own tokens -inf."""

    def change(answer: teacher_pb2.ScoreResponse) -> None:
        scores = answer.responses[0]
        scores.support_logprobs = np.array([[0.0, -np.inf, -np.inf, -np.inf]] * 3, "<f2").tobytes()
        scores.log_tail_mass = np.full(3, -np.inf, "<f4").tobytes()
        scores.sampled_logprobs = np.full(3, sampled, "<f4").tobytes()
        support_ids_NK = np.tile(np.array([1, 0, 2, 3], "<u2"), (3, 1))
        support_ids_NK[:, 1] = FIRST
        scores.support_ids = support_ids_NK.tobytes()

    return change


@pytest.mark.parametrize("sampled", [-np.inf, -70_000.0])
async def test_logprob_beyond_half_precision_agrees_with_infinity(sampled: float) -> None:
    await ask(sharpen(sampled=sampled))


async def test_ordinary_logprob_disagrees_with_infinity() -> None:
    with pytest.raises(CorruptAnswerError, match=r"responses\[0\].sampled_logprobs"):
        await ask(sharpen(sampled=-1.0))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda answer: answer.ClearField("prompt_ids"), "prompt_ids"),
        (lambda answer: setattr(answer.prompt_ids, "data", b"\x01"), "prompt_ids"),
        (lambda answer: setattr(answer.prompt_ids, "data", b"\x01\x00"), "responses[0].digest"),
    ],
    ids=["absent", "odd", "other than scored"],
)
async def test_prompt_of_text_must_come_back_as_it_was_scored(change: Change, says: str) -> None:
    async with serving(ScriptedTeacher([Lie(change=change)])) as address, TeacherClient(address) as client:
        with pytest.raises(CorruptAnswerError) as caught:
            await client.score(Text("hello"), [FIRST], top_k=K)
    assert str(caught.value).startswith(says)
