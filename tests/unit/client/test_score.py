"""What `score` and `info` send and return against a server that answers honestly."""

from __future__ import annotations

import inspect
from collections.abc import Callable

import numpy as np
import pytest
from preceptor.v1 import teacher_pb2
from preceptor.wire import LogprobDtype, PositionStatus, SegmentationPolicy, TokenDtype, encode_token_ids
from preceptor_client import Chat, ChatMessage, StudentIds, TeacherClient, TeacherIds, Text
from preceptor_client.request import RegisterOptions
from preceptor_client.teacher import ScoreOptions

from tests.unit.client.scripted_teacher import TEXT_PROMPT_IDS, Lie, ScriptedTeacher, dense_logprobs, serving


async def test_scores_are_the_teachers_own_distribution() -> None:
    ids = np.array([10, 20, 30])
    async with serving(ScriptedTeacher()) as address, TeacherClient(address) as client:
        scores = await client.score(TeacherIds([1, 2]), [ids], top_k=4, temperature=2.0, logprob_dtype=LogprobDtype.F32)
    dense_TV = dense_logprobs(ids, temperature=2.0)
    response = scores.responses[0]
    for row in range(3):
        likeliest = np.argsort(-dense_TV[row])[:4]
        assert response.support_ids_NK[row].tolist() == likeliest.tolist()
        # float32 of values around -10: half a unit in the last place is 5e-7.
        np.testing.assert_allclose(response.support_logprobs_NK[row], dense_TV[row][likeliest], atol=1e-6)
        np.testing.assert_allclose(response.sampled_logprobs_N[row], dense_TV[row][ids[row]], atol=1e-6)
    assert scores.prompt_ids.tolist() == [1, 2]
    assert (scores.teacher, scores.revision, scores.top_k, scores.temperature) == ("tutor", "r1", 4, 2.0)
    assert scores.timings.total_ms == 6.5


@pytest.mark.parametrize("dtype", LogprobDtype)
async def test_candidates_come_back_with_the_ids_of_the_scored_positions(dtype: LogprobDtype) -> None:
    ids = np.array([10, 20, 30])
    # More of them than the support holds, the sampled token and the same id twice among them.
    named = np.array([[10, 4, 4, 96, 0], [1, 2, 3, 4, 5], [30, 30, 7, 8, 9]], np.int32)
    teacher = ScriptedTeacher()
    async with serving(teacher) as address, TeacherClient(address) as client:
        scores = await client.score(
            TeacherIds([1]),
            [ids, [7, 8], [5]],
            top_k=2,
            temperature=2.0,
            score_masks=[[1, 0, 1], None, None],
            candidate_ids=[named, None, np.array([[6]])],
            logprob_dtype=dtype,
        )
    first, second, third = scores.responses
    assert first.candidate_ids_NC is not None
    assert first.candidate_logprobs_NC is not None
    assert first.candidate_ids_NC.tolist() == named[[0, 2]].tolist()
    expected_NC = np.take_along_axis(dense_logprobs(ids, temperature=2.0), named, axis=1)[[0, 2]]
    np.testing.assert_allclose(
        first.candidate_logprobs_NC, expected_NC, rtol=2**-11 if dtype is LogprobDtype.F16 else 1e-6
    )
    assert (second.candidate_ids_NC, second.candidate_logprobs_NC) == (None, None)
    assert third.candidate_logprobs_NC is not None
    assert third.candidate_logprobs_NC.shape == (1, 1)
    sent = [response.candidates for response in teacher.requests[0].responses]
    assert [candidates.num_per_position for candidates in sent] == [5, 0, 1]
    assert not teacher.requests[0].responses[1].HasField("candidates")
    assert len(sent[0].ids.data) == 15 * 2


async def test_half_precision_is_the_default_and_close_to_single() -> None:
    async with serving(ScriptedTeacher()) as address, TeacherClient(address) as client:
        half = await client.score(TeacherIds([1]), [[10, 20]], top_k=4)
        single = await client.score(TeacherIds([1]), [[10, 20]], top_k=4, logprob_dtype=LogprobDtype.F32)
    a, b = half.responses[0].support_logprobs_NK, single.responses[0].support_logprobs_NK
    assert not np.array_equal(a, b)
    np.testing.assert_allclose(a, b, rtol=2**-11)


async def test_masked_positions_have_no_row() -> None:
    async with serving(ScriptedTeacher()) as address, TeacherClient(address) as client:
        scores = await client.score(TeacherIds([1]), [[10, 20, 30], [7]], top_k=2, score_masks=[[1, 0, 1], None])
    first, second = scores.responses
    assert first.positions_N.tolist() == [0, 2]
    assert first.status_T.tolist() == [PositionStatus.OK, PositionStatus.EXCLUDED, PositionStatus.OK]
    expected = dense_logprobs(np.array([10, 20, 30]), temperature=1.0)[[0, 2], [10, 30]]
    np.testing.assert_allclose(first.sampled_logprobs_N, expected, atol=1e-6)
    assert second.positions_N.tolist() == [0]


async def test_whole_vocabulary_as_support_leaves_no_tail() -> None:
    async with serving(ScriptedTeacher()) as address, TeacherClient(address) as client:
        scores = await client.score(TeacherIds([1]), [[10]], top_k=97)
    assert scores.responses[0].log_tail_mass_N.tolist() == [-np.inf]


@pytest.mark.parametrize("prompt", [Text("hello"), Chat((ChatMessage("user", "hello"),))])
async def test_prompt_of_text_returns_the_ids_that_the_teacher_read(prompt: Text | Chat) -> None:
    async with serving(ScriptedTeacher()) as address, TeacherClient(address) as client:
        scores = await client.score(prompt, [[10]], top_k=2)
    assert scores.prompt_ids.tolist() == list(TEXT_PROMPT_IDS)


def column_of_ids(ids: list[int]) -> teacher_pb2.TokenIds:
    data = encode_token_ids(np.array(ids), TokenDtype.U32)
    return teacher_pb2.TokenIds(data=data, dtype=teacher_pb2.TOKEN_DTYPE_U32)


async def test_prompt_that_the_teacher_tokenised_anew_comes_back_in_its_ids() -> None:
    # The digest stays that of the ids which were sent.
    lie = Lie(change=lambda answer: answer.prompt_ids.CopyFrom(column_of_ids([70_000, 5])))
    async with serving(ScriptedTeacher([lie])) as address, TeacherClient(address) as client:
        scores = await client.score(StudentIds([1, 2, 3]), [[10]], top_k=2)
    assert scores.prompt_ids.tolist() == [70_000, 5]


async def test_applied_policy_is_told_where_the_server_chose_it() -> None:
    def choose(answer: teacher_pb2.ScoreResponse) -> None:
        answer.segmentation = teacher_pb2.SEGMENTATION_POLICY_CANONICAL

    teacher = ScriptedTeacher([Lie(change=choose)])
    async with serving(teacher) as address, TeacherClient(address) as client:
        chosen = await client.score(StudentIds([1]), [[10]], top_k=2)
        asked = await client.score(StudentIds([1]), [[10]], top_k=2, segmentation=SegmentationPolicy.MASK)
    assert teacher.requests[0].segmentation == teacher_pb2.SEGMENTATION_POLICY_UNSPECIFIED
    assert (chosen.segmentation, asked.segmentation) == (SegmentationPolicy.CANONICAL, SegmentationPolicy.MASK)


async def test_ids_that_stood_for_the_response_come_with_the_row_of_each_position() -> None:
    def read_otherwise(answer: teacher_pb2.ScoreResponse) -> None:
        answer.segmentation = teacher_pb2.SEGMENTATION_POLICY_CANONICAL
        scores = answer.responses[0]
        scores.teacher_ids.CopyFrom(column_of_ids([70_000, 8, 9, 10]))
        scores.teacher_rows = np.array([0, 2], "<u4").tobytes()
        scores.unmapped_mass = 0.125

    teacher = ScriptedTeacher([Lie(change=read_otherwise)])
    async with serving(teacher) as address, TeacherClient(address) as client:
        scores = (await client.score(StudentIds([1]), [[10, 20]], top_k=2)).responses[0]
        own = (await client.score(StudentIds([1]), [[10, 20]], top_k=2)).responses[0]
    assert scores.teacher_ids_M is not None
    assert scores.teacher_rows_N is not None
    assert scores.teacher_ids_M.tolist() == [70_000, 8, 9, 10]
    assert (scores.teacher_rows_N.tolist(), scores.unmapped_mass) == ([0, 2], 0.125)
    assert (own.teacher_ids_M, own.teacher_rows_N, own.unmapped_mass) == (None, None, 0.0)


async def test_each_kind_of_prompt_arrives_as_itself() -> None:
    teacher = ScriptedTeacher()
    async with serving(teacher) as address, TeacherClient(address) as client:
        await client.score(StudentIds([1]), [[1]], top_k=2)
        await client.score(TeacherIds([1]), [[1]], top_k=2)
        await client.score(Text("a", omit_special_tokens=True), [[1]], top_k=2)
        await client.score(Chat((ChatMessage("user", "b"),)), [[1]], top_k=2)
    prompts = [request.prompt for request in teacher.requests]
    assert [prompt.WhichOneof("kind") for prompt in prompts] == ["student_ids", "teacher_ids", "text", "chat"]
    assert prompts[2].text == teacher_pb2.TextPrompt(text="a", omit_special_tokens=True)
    assert prompts[3].chat.messages[0] == teacher_pb2.ChatMessage(role="user", content="b")


@pytest.mark.parametrize(
    ("largest", "dtype", "num_bytes"),
    [(65_535, teacher_pb2.TOKEN_DTYPE_U16, 4), (65_536, teacher_pb2.TOKEN_DTYPE_U32, 8)],
)
async def test_ids_travel_in_the_narrowest_dtype(largest: int, dtype: int, num_bytes: int) -> None:
    teacher = ScriptedTeacher()
    async with serving(teacher) as address, TeacherClient(address) as client:
        await client.score(StudentIds([1, largest]), [[3]], top_k=2)
    assert teacher.requests[0].prompt.student_ids.dtype == dtype
    assert len(teacher.requests[0].prompt.student_ids.data) == num_bytes


async def test_every_option_reaches_the_server() -> None:
    teacher = ScriptedTeacher()
    async with serving(teacher) as address, TeacherClient(address) as client:
        await client.score(
            StudentIds([1]),
            [[2, 3]],
            top_k=5,
            temperature=0.5,
            teacher="other",
            adapter="law",
            tokenizer_id="mine",
            score_masks=[[0, 1]],
            batch_invariant=True,
            segmentation=SegmentationPolicy.PAPER,
            paper_token_ids=[9, 8],
            request_id="r-7",
        )
    sent = teacher.requests[0]
    assert (sent.request_id, sent.teacher, sent.adapter, sent.tokenizer_id) == ("r-7", "other", "law", "mine")
    assert (sent.top_k, sent.temperature, sent.batch_invariant) == (5, 0.5, True)
    assert (sent.segmentation, list(sent.paper_token_ids)) == (teacher_pb2.SEGMENTATION_POLICY_PAPER, [9, 8])
    assert sent.responses[0].score_mask == b"\x00\x01"


async def test_caller_is_named_in_the_metadata() -> None:
    teacher = ScriptedTeacher()
    async with serving(teacher) as address:
        for caller in ("team-a", ""):
            async with TeacherClient(address, caller=caller) as client:
                await client.score(TeacherIds([1]), [[1]], top_k=2)
    assert teacher.metadata[0]["preceptor-caller"] == "team-a"
    assert str(teacher.metadata[1]["preceptor-caller"]).count("-") >= 2


async def test_request_ids_differ_between_calls() -> None:
    teacher = ScriptedTeacher()
    async with serving(teacher) as address, TeacherClient(address) as client:
        await client.score(TeacherIds([1]), [[1]], top_k=2)
        await client.score(TeacherIds([1]), [[1]], top_k=2)
    assert teacher.requests[0].request_id != teacher.requests[1].request_id


async def test_info_carries_teachers_and_limits() -> None:
    async with serving(ScriptedTeacher(tokenizer_json=b"{}")) as address, TeacherClient(address) as client:
        info = await client.info()
        with_tokenizer = await client.info(include_tokenizer=True)
    assert info.server_version == "9.8.7"
    teacher = info.teachers[0]
    assert (teacher.name, teacher.vocabulary_size, teacher.end_token_ids) == ("tutor", 97, (3, 4))
    assert (teacher.special_tokens[0].id, teacher.special_tokens[0].text) == (3, "<end>")
    assert (teacher.capabilities.temperature, teacher.capabilities.batch_invariant) == (True, False)
    assert (info.limits.max_top_k, info.limits.max_queue_tokens, info.limits.max_tokenizer_bytes) == (64, 4096, 1 << 19)
    assert (teacher.tokenizer_json, with_tokenizer.teachers[0].tokenizer_json) == ("", "{}")


@pytest.mark.parametrize(
    ("method", "options"),
    [(TeacherClient.score, ScoreOptions), (TeacherClient.register_tokenizer, RegisterOptions)],
)
def test_options_of_the_blocking_twin_are_the_methods_own(method: Callable[..., object], options: type) -> None:
    parameters = inspect.signature(method).parameters.values()
    keywords = {parameter.name for parameter in parameters if parameter.kind is inspect.Parameter.KEYWORD_ONLY}
    assert set(options.__annotations__) == keywords
