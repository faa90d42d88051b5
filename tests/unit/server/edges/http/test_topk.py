"""What /v1/topk answers, against what the same engine says when it is asked without HTTP."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from typing import Any

import msgpack
import numpy as np
import pytest
from preceptor.v1 import teacher_pb2 as pb
from preceptor_server.alignment.teacher_tokenizer import TeacherTokenizer
from preceptor_server.calls import ScoreCall, TeacherIds
from preceptor_server.edges.grpc.decoding import decode_score_request
from preceptor_server.edges.grpc.encoding import encode_score_response
from preceptor_server.edges.http.answer import build_answer, to_json, to_lines
from preceptor_server.edges.http.answers import TopkAnswer
from preceptor_server.edges.http.requests import TopkRequest
from preceptor_server.edges.http.students import Student
from preceptor_server.edges.http.texts import vocabularies_of
from preceptor_server.edges.http.translate import response_of, translate_topk
from preceptor_server.serving import Notes, ScoreService
from preceptor_server.teachers import Teachers

from tests.tiny import tiny_tokenizer
from tests.unit.server.edges.http.asking import Body, asking, group, problem, tiny_teacher
from tests.unit.server.hosting import bos_tokenizer
from tests.unit.server.preparing import CALLER
from tests.unit.server.scored_calls import columns_of, scored_call


async def scored(request: pb.ScoreRequest) -> pb.ScoreResponse:
    """By a teacher of its own, which is the same to the bit."""
    teacher = tiny_teacher()
    teacher.scheduler.start()
    try:
        call = decode_score_request(request)
        service = ScoreService(Teachers([teacher]))
        return encode_score_response(await service.score(call, CALLER, timeout_seconds=10))
    finally:
        await teacher.scheduler.stop()


def ids(*values: int) -> pb.TokenIds:
    return pb.TokenIds(data=np.array(values, "<u2").tobytes(), dtype=pb.TOKEN_DTYPE_U16)


def request(*responses: pb.Response, prompt: tuple[int, ...] = (3, 4, 5), **fields: Any) -> pb.ScoreRequest:
    options: dict[str, Any] = {"top_k": 4, "temperature": 1.0, "logprob_dtype": pb.LOGPROB_DTYPE_F32} | fields
    return pb.ScoreRequest(prompt=pb.Prompt(teacher_ids=ids(*prompt)), responses=responses, **options)


def f32(values: Any) -> np.ndarray[Any, Any]:  # Any: lists of numbers and nulls, nested
    """JSON's numbers as the wire's: null, which numpy reads as NaN, is minus infinity."""
    column = np.array(values, np.float64)
    return np.where(np.isnan(column), -np.inf, column).astype("<f4")


async def answer_to(body: Body) -> Body:
    async with asking() as asked:
        answer = await asked.topk(body)
        assert answer.status_code == 200, answer.text
        assert answer.headers["content-type"] == "application/json"
        TopkAnswer.model_validate_json(answer.content)
        content: Body = answer.json()
        return content


async def test_the_columns_are_those_of_the_wire_to_the_bit() -> None:
    answer = await answer_to(group(request_id="me"))
    expected = await scored(request(pb.Response(ids=ids(6, 7)), request_id="me"))
    [response], [scores] = answer["responses"], expected.responses
    assert (answer["request_id"], answer["teacher"], answer["top_k"]) == ("me", "professor", 4)
    assert (answer["segmentation"], answer["prompt_ids"]) == ("as_is", [3, 4, 5])
    assert (response["ids"], response["status"], response["positions"]) == ([6, 7], ["ok", "ok"], [0, 1])
    for name in ("sampled_logprobs", "log_tail_mass", "entropies", "support_logprobs"):
        assert f32(response[name]).tobytes() == getattr(scores, name), name
    assert np.array(response["support_ids"], "<u2").tobytes() == scores.support_ids
    assert response["digest"] == scores.digest.hex()
    assert response["candidate_ids"] is response["teacher_ids"] is response["student_logprobs"] is None


async def test_f16_rounds_as_the_wire_does() -> None:
    answer = await answer_to(group(logprob_dtype="f16"))
    expected = await scored(request(pb.Response(ids=ids(6, 7)), logprob_dtype=pb.LOGPROB_DTYPE_F16))
    shown = np.array(answer["responses"][0]["support_logprobs"], "<f2")
    assert shown.tobytes() == expected.responses[0].support_logprobs


async def test_masks_candidates_and_the_students_logprobs() -> None:
    response = {
        "ids": [6, 7, 8],
        "score_mask": [True, False, True],
        "candidate_ids": [[1, 9], [2, 9], [3, 9]],
        "student_logprobs": [-0.1, -1e-300, 0],
    }
    [shown] = (await answer_to(group(responses=[response])))["responses"]
    assert (shown["status"], shown["positions"]) == (["ok", "excluded", "ok"], [0, 2])
    assert (shown["candidate_ids"], shown["student_logprobs"]) == ([[1, 9], [3, 9]], [-0.1, -1e-300, 0.0])
    assert len(shown["sampled_logprobs"]) == len(shown["support_ids"]) == len(shown["candidate_logprobs"]) == 2
    candidates = pb.CandidateIds(ids=ids(1, 9, 2, 9, 3, 9), num_per_position=2)
    wire = pb.Response(ids=ids(6, 7, 8), score_mask=b"\x01\x00\x01", candidates=candidates)
    expected = (await scored(request(wire))).responses[0]
    assert f32(shown["candidate_logprobs"]).tobytes() == expected.candidate_logprobs


async def test_ranks_count_from_one_and_are_null_outside_the_support() -> None:
    whole = await answer_to(group(top_k=259))
    for row, rank, token in zip(
        whole["responses"][0]["support_ids"], whole["responses"][0]["sampled_ranks"], [6, 7], strict=True
    ):
        assert row[rank - 1] == token
    few = (await answer_to(group(top_k=1)))["responses"][0]
    assert few["sampled_ranks"] == [1 if few["support_ids"][i] == [t] else None for i, t in enumerate([6, 7])]
    assert whole["responses"][0]["log_tail_mass"] == [None, None]  # the support holds everything: minus infinity


async def test_what_may_follow_is_the_row_before_whatever_comes() -> None:
    answer = await answer_to({"prompt": {"teacher_ids": [3, 4, 5]}, "top_k": 4})
    [shown] = answer["responses"]
    expected = (await scored(request(pb.Response(ids=ids(100))))).responses[0]
    assert (shown["ids"], shown["status"], shown["positions"]) == ([], [], [0])
    assert (shown["sampled_logprobs"], shown["sampled_ranks"]) == ([None], [None])
    assert f32(shown["support_logprobs"]).tobytes() == expected.support_logprobs
    assert f32(shown["log_tail_mass"]).tobytes() == expected.log_tail_mass
    assert shown["teacher_ids"] is shown["teacher_rows"] is None


@pytest.mark.parametrize("segmentation", ["as_is", "mask", "canonical", "paper"])
async def test_what_may_follow_is_told_by_every_policy(segmentation: str) -> None:
    paper = {"paper_token_ids": [0, 1, 2]} if segmentation == "paper" else {}
    answer = await answer_to({"prompt": {"text": "ab"}, "top_k": 3, "segmentation": segmentation, **paper})
    [shown] = answer["responses"]
    assert (answer["segmentation"], shown["positions"]) == (segmentation, [0])
    assert len(shown["support_ids"]) == 1
    assert shown["teacher_ids"] is None


async def test_all_of_a_prompt_is_its_tokens_as_a_response_to_the_first() -> None:
    answer = await answer_to({"prompt": {"teacher_ids": [3, 4, 5]}, "positions": "all", "top_k": 4})
    expected = (await scored(request(pb.Response(ids=ids(4, 5)), prompt=(3,)))).responses[0]
    assert (answer["prompt_ids"], answer["responses"][0]["ids"]) == ([3], [4, 5])
    assert f32(answer["responses"][0]["sampled_logprobs"]).tobytes() == expected.sampled_logprobs


async def test_all_of_a_text_is_cut_as_the_teacher_cuts_it() -> None:
    teacher = tiny_teacher(tokenizer=bos_tokenizer())
    async with asking(teacher) as asked:
        with_bos = (await asked.topk({"prompt": {"text": "ab"}, "positions": "all"})).json()
        body = {"prompt": {"text": "ab", "omit_special_tokens": True}, "positions": "all"}
        without = (await asked.topk(body)).json()
        chat = {"prompt": {"messages": [{"role": "user", "content": "a"}]}, "positions": "all"}
        rendered = (await asked.topk(chat)).json()
    a, b = with_bos["responses"][0]["ids"]
    assert with_bos["prompt_ids"] == [1]
    assert (without["prompt_ids"], without["responses"][0]["ids"]) == ([a], [b])
    assert rendered["prompt_ids"] == [1]
    assert with_bos["texts"][str(a)] == "a"


async def test_text_is_cut_and_its_special_tokens_count_as_such() -> None:
    answer = await answer_to(group(prompt={"text": "hé"}, responses=[{"text": " <b>&<|im_end|>"}]))
    shown = answer["responses"][0]
    assert shown["ids"][-1] == 2
    assert "".join(answer["texts"][str(token)] for token in shown["ids"]) == " <b>&<|im_end|>"
    assert [answer["teacher_texts"][str(token)] for token in answer["prompt_ids"]] == ["h", "<0xC3>", "<0xA9>"]
    assert set(answer["texts"]) == {str(token) for row in [shown["ids"], *shown["support_ids"]] for token in row}


async def test_chat_is_rendered_with_the_teachers_template() -> None:
    teacher = tiny_teacher()
    assert teacher.tokenizer is not None
    messages = [{"role": "user", "content": "hi"}]
    answer = await answer_to(group(prompt={"messages": messages}))
    assert answer["prompt_ids"] == teacher.tokenizer.render(messages, field="").tolist()


async def test_lines_are_the_same_in_pieces() -> None:
    body = group(responses=[{"ids": list(range(6, 46))}, {"ids": [9]}])
    async with asking() as asked:
        whole = (await asked.topk(body)).json()
        answer = await asked.topk(body, accept="application/x-ndjson")
    assert answer.headers["content-type"] == "application/x-ndjson"
    assert joined_lines(answer.text) | {"timings": whole["timings"]} == whole


def joined_lines(text: str) -> Body:
    head, *pieces, last = [json.loads(line) for line in text.splitlines()]
    assert last == {"done": True}
    for piece in pieces:
        rows = head["responses"][piece["response"]]
        for name, column in piece["rows"].items():
            rows[name] = column if rows.get(name) is None else rows[name] + column
    joined: Body = head
    return joined


async def test_msgpack_is_the_message_by_its_names() -> None:
    async with asking() as asked:
        answer = await asked.topk(group(prompt={"text": "ab"}), accept="application/msgpack")
    assert answer.headers["content-type"] == "application/msgpack"
    fields = msgpack.unpackb(answer.content)
    expected = await scored(
        pb.ScoreRequest(
            prompt=pb.Prompt(text=pb.TextPrompt(text="ab")),
            responses=[pb.Response(ids=ids(6, 7))],
            top_k=4,
            temperature=1.0,
            logprob_dtype=pb.LOGPROB_DTYPE_F32,
        )
    )
    fields["responses"] = [
        {name: value for name, value in one.items() if value is not None} for one in fields["responses"]
    ]
    rebuilt = pb.ScoreResponse(**fields)
    rebuilt.timings.CopyFrom(expected.timings)
    assert rebuilt == expected


def edge_numbers() -> np.ndarray[Any, Any]:
    """f32 that are hard to write: subnormal, extreme, neighbours of powers, and a thousand at random."""
    rng = np.random.default_rng(7)
    random = rng.integers(0, 2**31, 1000).astype("<u4").view("<f4")
    special = np.array([1e-45, 1.17549435e-38, 3.4028235e38, 1.0, np.nextafter(np.float32(1), np.float32(2))], "<f4")
    return -np.concatenate([special, random[np.isfinite(random)]]).astype("<f4")


def test_every_f32_survives_json_to_the_bit_and_minus_infinity_is_null() -> None:
    column = np.append(edge_numbers(), np.float32(-np.inf))
    num = len(column)
    columns = replace(
        columns_of(column.tolist()),
        support_ids_NK=np.full((num, 1), 3),
        support_logprobs_NK=column[:, None],
        sampled_logprobs_N=column,
        log_tail_mass_N=column,
        entropies_N=column,
    )
    call = ScoreCall(
        prompt=TeacherIds(ids_P=np.array([3])), responses=(response_of(np.full(num, 3)),), top_k=1, temperature=1.0
    )
    answer = build_answer(call, scored_call(columns), Notes(), vocabularies_of("", tiny_teacher()))
    for shown in (json.loads(to_json(answer)), joined_lines(b"".join(to_lines(answer)).decode())):
        [one] = shown["responses"]
        for name in ("sampled_logprobs", "log_tail_mass", "entropies"):
            assert one[name][-1] is None
            assert np.array(one[name][:-1], np.float64).astype("<f4").tobytes() == column[:-1].tobytes()
        assert np.array(one["support_logprobs"][:-1], np.float64).astype("<f4").tobytes() == column[:-1].tobytes()
        assert one["sampled_ranks"] == [1] * (num - 1) + [None]


def test_a_body_asks_what_grpc_would() -> None:
    body = TopkRequest.model_validate_json(
        json.dumps(
            {
                **group(teacher="professor", adapter="a", request_id="r", temperature=0.5, batch_invariant=True),
                **{"segmentation": "paper", "paper_token_ids": [1], "logprob_dtype": "f16"},
                "prompt": {"messages": [{"role": "user", "content": "x"}]},
            }
        )
    )
    student = Student(tokenizer_id="student", tokenizer=None)
    call = translate_topk(body, tiny_teacher(), student).call
    over_grpc = decode_score_request(
        pb.ScoreRequest(
            request_id="r",
            teacher="professor",
            adapter="a",
            tokenizer_id="student",
            prompt=pb.Prompt(chat=pb.ChatPrompt(messages=[pb.ChatMessage(role="user", content="x")])),
            responses=[pb.Response(ids=ids(6, 7))],
            top_k=4,
            temperature=0.5,
            logprob_dtype=pb.LOGPROB_DTYPE_F16,
            batch_invariant=True,
            segmentation=pb.SEGMENTATION_POLICY_PAPER,
            paper_token_ids=[1],
        )
    )
    names = {field.name for field in fields(ScoreCall)} - {"responses"}
    assert {name: getattr(call, name) for name in names} == {name: getattr(over_grpc, name) for name in names}
    for one, other in zip(call.responses, over_grpc.responses, strict=True):
        np.testing.assert_array_equal(one.ids_T, other.ids_T)
        np.testing.assert_array_equal(one.score_mask_T, other.score_mask_T)
        assert one.candidate_ids_TC is other.candidate_ids_TC is None


async def test_group_of_which_nothing_is_to_be_scored_is_read_and_has_no_rows() -> None:
    async with asking() as asked:
        read = await asked.topk(group(responses=[{"ids": [6, 7], "score_mask": [False, False]}]))
    assert read.status_code == 200
    (shown,) = read.json()["responses"]
    assert (shown["status"], shown["positions"]) == (["excluded", "excluded"], [])


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("{{ 1 / 0 }}", "fails on these messages with ZeroDivisionError: division by zero"),
        ("{{ a.b }}", "'a' is undefined"),
    ],
)
async def test_chat_that_the_template_fails_on_is_the_callers_mistake_and_the_next_is_served(
    template: str, words: str
) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{% if messages[0].content == 'x' %}" + template + "{% endif %}fine"
    async with asking(tiny_teacher(tokenizer=TeacherTokenizer(tokenizer))) as asked:
        for positions in ({}, {"positions": "all"}):
            chat = {"prompt": {"messages": [{"role": "user", "content": "x"}]}, "top_k": 2, **positions}
            failed = await asked.topk(chat)
            assert problem(failed)[0::2] == (400, "prompt.messages")
            assert words in failed.json()["detail"]
            chat["prompt"] = {"messages": [{"role": "user", "content": "y"}]}
            assert (await asked.topk(chat)).status_code == 200


@pytest.mark.parametrize("prompt", ["text", "messages"])
async def test_half_of_an_emoji_is_the_callers_mistake(prompt: str) -> None:
    value = '"a\\ud83d"' if prompt == "text" else '[{"role": "user", "content": "a\\ud83d"}]'
    async with asking() as asked:
        answer = await asked.client.post(
            "/v1/topk",
            content=f'{{"prompt": {{"{prompt}": {value}}}, "top_k": 2}}',
            headers={"content-type": "application/json"},
        )
        assert answer.status_code in (400, 422), answer.text
