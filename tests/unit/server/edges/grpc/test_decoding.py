from __future__ import annotations

import struct
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from preceptor.v1 import teacher_pb2 as pb
from preceptor.wire import LogprobDtype
from preceptor_server.alignment.teacher_tokenizer import TeacherTokenizer
from preceptor_server.config import LimitsConfig
from preceptor_server.errors import InvalidRequestError, NotYetImplementedError, UnknownTeacherError
from preceptor_server.hosted import HostedTeacher

from tests.tiny import tiny_tokenizer
from tests.unit.server.hosting import bos_tokenizer, hosted_teacher
from tests.unit.server.preparing import prepared

Edit = Callable[[pb.ScoreRequest], None]


def u16(*ids: int) -> pb.TokenIds:
    return pb.TokenIds(data=struct.pack(f"<{len(ids)}H", *ids), dtype=pb.TOKEN_DTYPE_U16)


def u32(*ids: int) -> pb.TokenIds:
    return pb.TokenIds(data=struct.pack(f"<{len(ids)}I", *ids), dtype=pb.TOKEN_DTYPE_U32)


def response(*ids: int, mask: bytes = b"") -> pb.Response:
    return pb.Response(ids=u16(*ids), score_mask=mask)


def request(
    *,
    prompt: Sequence[int] = (1, 2, 3),
    responses: Sequence[pb.Response] = (),
    top_k: int = 4,
    temperature: float = 1.0,
) -> pb.ScoreRequest:
    return pb.ScoreRequest(
        prompt=pb.Prompt(student_ids=u16(*prompt)),
        responses=responses or [response(4, 5), response(6)],
        top_k=top_k,
        temperature=temperature,
    )


@pytest.fixture(scope="module")
def tokenizer() -> TeacherTokenizer:
    return TeacherTokenizer(tiny_tokenizer())


def test_group_of_which_nothing_is_to_be_scored_asks_whether_its_prompt_can_be_read() -> None:
    asked = request(responses=[response(4, 5, mask=b"\x00\x00"), response(6, mask=b"\x00")])
    call = prepared(asked, hosted_teacher())
    assert [r.score_mask_T.tolist() for r in call.responses] == [[False, False], [False]]


def test_request_becomes_a_group() -> None:
    call = prepared(
        pb.ScoreRequest(
            request_id="r-7",
            teacher="professor",
            tokenizer_id="none-300",
            prompt=pb.Prompt(teacher_ids=u32(1, 2, 299)),
            responses=[response(4, 5, 6, mask=b"\x00\x01\x01"), pb.Response(ids=u32(0))],
            top_k=17,
            temperature=0.7,
            logprob_dtype=pb.LOGPROB_DTYPE_F32,
            batch_invariant=True,
        ),
        hosted_teacher(),
    )
    assert call.call.request_id == "r-7"
    assert call.call.logprob_dtype is LogprobDtype.F32
    assert not call.returns_prompt_ids
    assert call.prompt_ids_P.tolist() == [1, 2, 299]
    assert [r.ids_T.tolist() for r in call.responses] == [[4, 5, 6], [0]]
    assert [r.score_mask_T.tolist() for r in call.responses] == [[False, True, True], [True]]
    assert (call.call.top_k, call.call.temperature, call.call.batch_invariant) == (17, 0.7, True)


def test_what_a_request_leaves_open_has_the_documented_default() -> None:
    call = prepared(request(), hosted_teacher())
    assert call.call.request_id == ""
    assert call.call.logprob_dtype is LogprobDtype.F16
    assert not call.call.batch_invariant


def clear_prompt(r: pb.ScoreRequest) -> None:
    r.ClearField("prompt")


def clear_responses(r: pb.ScoreRequest) -> None:
    r.ClearField("responses")


def empty_text(r: pb.ScoreRequest) -> None:
    r.prompt.text.text = ""
    r.prompt.text.omit_special_tokens = True


def empty_chat(r: pb.ScoreRequest) -> None:
    r.prompt.chat.SetInParent()


def put_prompt(ids: pb.TokenIds) -> Edit:
    return lambda r: r.prompt.student_ids.CopyFrom(ids)


def put_teacher_prompt(ids: pb.TokenIds) -> Edit:
    return lambda r: r.prompt.teacher_ids.CopyFrom(ids)


def put_second_response(changed: pb.Response) -> Edit:
    return lambda r: r.responses[1].CopyFrom(changed)


def set_number(name: str, value: float) -> Edit:
    return lambda r: setattr(r, name, value)


def put_candidates(ids: pb.TokenIds, num_per_position: int) -> Edit:
    """Of the first response, which has two tokens."""
    candidates = pb.CandidateIds(ids=ids, num_per_position=num_per_position)
    return lambda r: r.responses[0].candidates.CopyFrom(candidates)


TORN = pb.TokenIds(data=b"\x01\x00\x02", dtype=pb.TOKEN_DTYPE_U16)
NO_DTYPE = pb.TokenIds(data=b"\x01\x00")


@pytest.mark.parametrize(
    ("edit", "field", "reason", "message"),
    [
        (lambda r: setattr(r, "request_id", "x" * 129), "request_id", "INVALID_FIELD", "longer than 128 characters"),
        (set_number("top_k", 0), "top_k", "INVALID_FIELD", r"0 is outside \[1, 300\]"),
        (set_number("top_k", 301), "top_k", "INVALID_FIELD", r"301 is outside \[1, 300\]"),
        (set_number("temperature", 0.0), "temperature", "INVALID_FIELD", "0.0 is not a finite number above 0"),
        (set_number("temperature", -1.0), "temperature", "INVALID_FIELD", "not a finite number"),
        (set_number("temperature", float("nan")), "temperature", "INVALID_FIELD", "not a finite number"),
        (set_number("temperature", float("inf")), "temperature", "INVALID_FIELD", "not a finite number"),
        (set_number("logprob_dtype", 9), "logprob_dtype", "INVALID_FIELD", "9 is unknown"),
        (clear_prompt, "prompt", "INVALID_FIELD", "is missing: set one of"),
        (put_prompt(u16()), "prompt.student_ids", "EMPTY", "at least one token"),
        (put_teacher_prompt(u16()), "prompt.teacher_ids", "EMPTY", "at least one token"),
        (put_prompt(TORN), "prompt.student_ids", "MALFORMED_COLUMN", "has 3 bytes, not a multiple of 2"),
        (put_prompt(NO_DTYPE), "prompt.student_ids", "MALFORMED_COLUMN", "dtype 0 is unknown"),
        (
            put_teacher_prompt(u16(1, 300, 301)),
            "prompt.teacher_ids",
            "TOKEN_OUT_OF_RANGE",
            r"token id 300 at position 1 is outside the vocabulary \[0, 300\)",
        ),
        (
            put_prompt(u32(4_294_967_295)),
            "prompt.student_ids",
            "TOKEN_OUT_OF_RANGE",
            "token id 4294967295 at position 0",
        ),
        (empty_text, "prompt.text.text", "INVALID_FIELD", "the prompt is empty"),
        (empty_chat, "prompt.chat.messages", "INVALID_FIELD", "the prompt is empty"),
        (clear_responses, "responses", "INVALID_FIELD", "at least one response"),
        (lambda r: r.responses.add(ids=u16(1)), "responses", "INVALID_FIELD", "3 exceed max_responses=2"),
        (put_second_response(pb.Response()), "responses[1].ids", "EMPTY", "at least one token"),
        (put_second_response(pb.Response(ids=TORN)), "responses[1].ids", "MALFORMED_COLUMN", "has 3 bytes"),
        (put_second_response(response(7, 300)), "responses[1].ids", "TOKEN_OUT_OF_RANGE", "token id 300 at position 1"),
        (
            put_second_response(response(7, 8, mask=b"\x01")),
            "responses[1].score_mask",
            "MALFORMED_COLUMN",
            "holds 1 entries for 2 tokens",
        ),
        (
            put_second_response(response(7, 8, mask=b"\x01\x02")),
            "responses[1].score_mask",
            "MALFORMED_COLUMN",
            "a value other than 0 and 1",
        ),
        (
            put_second_response(response(7, 8, mask=b"\x00\x00")),
            "responses[1].score_mask",
            "INVALID_FIELD",
            "excludes every token",
        ),
        (
            put_candidates(u16(), 0),
            "responses[0].candidates.num_per_position",
            "INVALID_FIELD",
            r"0 is outside \[1, 300\]",
        ),
        (
            put_candidates(u16(*[1] * 602), 301),
            "responses[0].candidates.num_per_position",
            "INVALID_FIELD",
            r"301 is outside \[1, 300\]",
        ),
        (put_candidates(u16(), 1), "responses[0].candidates.ids", "EMPTY", "at least one token"),
        (put_candidates(TORN, 1), "responses[0].candidates.ids", "MALFORMED_COLUMN", "has 3 bytes"),
        (put_candidates(NO_DTYPE, 1), "responses[0].candidates.ids", "MALFORMED_COLUMN", "dtype 0 is unknown"),
        (
            put_candidates(u16(1, 2, 3), 2),
            "responses[0].candidates.ids",
            "MALFORMED_COLUMN",
            "holds 3 ids for 2 tokens: send num_per_position=2 for each token, 4 in all",
        ),
        (
            put_candidates(u16(1, 2, 3, 300), 2),
            "responses[0].candidates.ids",
            "TOKEN_OUT_OF_RANGE",
            r"token id 300 at position 3 is outside the vocabulary \[0, 300\)",
        ),
        (
            put_second_response(response(*[7] * 62)),
            "responses[1].ids",
            "BEYOND_CONTEXT",
            r"prompt \(3\) \+ response \(62\) exceed the teacher's max_model_len=64",
        ),
    ],
)
def test_mistake_is_told_by_field_and_reason(edit: Edit, field: str, reason: str, message: str) -> None:
    wrong = request()
    edit(wrong)
    teacher = hosted_teacher(limits=LimitsConfig(max_responses=2))
    with pytest.raises(InvalidRequestError, match=message) as caught:
        prepared(wrong, teacher)
    assert type(caught.value) is InvalidRequestError
    assert (caught.value.field, caught.value.reason) == (field, reason)
    assert str(caught.value).startswith(f"{field}: ")
    assert str(caught.value).count(f"{field}: ") == 1


def test_numbers_at_their_bounds_are_taken() -> None:
    longest = request(responses=[response(*[7] * 61)], top_k=300, temperature=1e-3)
    longest.request_id = "x" * 128
    call = prepared(longest, hosted_teacher())
    assert call.call.top_k == 300
    assert len(call.responses[0].ids_T) == 61


def test_largest_support_is_also_bounded_by_the_servers_limit() -> None:
    with pytest.raises(InvalidRequestError, match=r"top_k: 9 is outside \[1, 8\]"):
        prepared(request(top_k=9), hosted_teacher(limits=LimitsConfig(max_top_k=8)))


def test_group_with_too_many_tokens_counts_its_prompt_once() -> None:
    # 3 of the prompt, 2 + 1 of the responses
    prepared(request(), hosted_teacher(limits=LimitsConfig(max_group_tokens=6)))
    with pytest.raises(InvalidRequestError, match="has 6 tokens, above max_group_tokens=5") as caught:
        prepared(request(), hosted_teacher(limits=LimitsConfig(max_group_tokens=5)))
    assert caught.value.field == "responses"


@pytest.mark.parametrize(
    ("dtype", "vocabulary_size", "bytes_per_entry"),
    [
        (pb.LOGPROB_DTYPE_F16, 65_536, 4),
        (pb.LOGPROB_DTYPE_F32, 65_536, 6),
        (pb.LOGPROB_DTYPE_F16, 65_537, 6),
        (pb.LOGPROB_DTYPE_F32, 65_537, 8),
    ],
)
def test_answer_that_would_not_fit_a_message_is_refused_beforehand(
    dtype: pb.LogprobDtype.ValueType, vocabulary_size: int, bytes_per_entry: int
) -> None:
    teacher = hosted_teacher(vocabulary_size=vocabulary_size, limits=LimitsConfig(max_message_bytes=65_536))
    # 40 positions of K entries, and 13 bytes each besides.
    largest_k = (65_536 // 40 - 13) // bytes_per_entry
    wanted = request(responses=[response(*[7] * 20), response(*[8] * 20)], top_k=largest_k)
    wanted.logprob_dtype = dtype
    assert prepared(wanted, teacher).call.top_k == largest_k
    wanted.top_k += 1
    num_bytes = 40 * ((largest_k + 1) * bytes_per_entry + 13)
    with pytest.raises(InvalidRequestError, match=f"the answer would have {num_bytes} bytes") as caught:
        prepared(wanted, teacher)
    assert (caught.value.field, caught.value.reason) == ("top_k", "ANSWER_TOO_LARGE")


def test_candidates_become_a_row_per_token_and_may_differ_in_number_and_repeat() -> None:
    asked = request(responses=[response(4, 5, mask=b"\x00\x01"), response(6), response(7)])
    asked.responses[0].candidates.CopyFrom(pb.CandidateIds(ids=u32(1, 2, 2, 8, 299, 0), num_per_position=3))
    asked.responses[2].candidates.CopyFrom(pb.CandidateIds(ids=u16(7), num_per_position=1))
    first, second, third = prepared(asked, hosted_teacher()).responses
    assert first.candidate_ids_TC is not None
    assert third.candidate_ids_TC is not None
    assert first.candidate_ids_TC.tolist() == [[1, 2, 2], [8, 299, 0]]
    assert second.candidate_ids_TC is None
    assert third.candidate_ids_TC.tolist() == [[7]]


@pytest.mark.parametrize(("dtype", "bytes_per_candidate"), [(pb.LOGPROB_DTYPE_F16, 2), (pb.LOGPROB_DTYPE_F32, 4)])
def test_candidates_count_towards_the_size_of_the_answer(
    dtype: pb.LogprobDtype.ValueType, bytes_per_candidate: int
) -> None:
    # 1000 positions with a support of one entry, an id of two bytes, and 13 bytes each besides.
    bytes_without = 1000 * (2 + bytes_per_candidate + 13)
    largest = (65_536 - bytes_without) // (1000 * bytes_per_candidate)
    teacher = hosted_teacher(max_model_len=2000, limits=LimitsConfig(max_message_bytes=65_536))
    wanted = request(responses=[response(*[7] * 1000)], top_k=1)
    wanted.logprob_dtype = dtype

    def name(num_per_position: int) -> None:
        ids = u16(*[5] * (1000 * num_per_position))
        wanted.responses[0].candidates.CopyFrom(pb.CandidateIds(ids=ids, num_per_position=num_per_position))

    name(largest)
    prepared(wanted, teacher)
    name(largest + 1)
    num_bytes = bytes_without + 1000 * bytes_per_candidate * (largest + 1)
    with pytest.raises(InvalidRequestError, match=f"would have {num_bytes} bytes.*or fewer candidates") as caught:
        prepared(wanted, teacher)
    assert caught.value.reason == "ANSWER_TOO_LARGE"


def bring_another_tokenizer(r: pb.ScoreRequest) -> None:
    r.tokenizer_id = "0123abcd"


def ask_for_candidates(r: pb.ScoreRequest) -> None:
    r.responses[1].candidates.CopyFrom(pb.CandidateIds(ids=u16(9), num_per_position=1))


def prompt_as_text(r: pb.ScoreRequest) -> None:
    r.prompt.text.text = "Hello"


def prompt_as_chat(r: pb.ScoreRequest) -> None:
    r.prompt.chat.messages.add(role="user", content="Hello")


def test_adapter_that_is_loaded_is_asked_for() -> None:
    wanted = request()
    wanted.adapter = "law"
    assert prepared(wanted, hosted_teacher(adapters={"law": "r-law"})).call.adapter == "law"
    assert prepared(request(), hosted_teacher(adapters={"law": "r-law"})).call.adapter == ""


@pytest.mark.parametrize(
    ("adapters", "says"),
    [
        ({}, r"'lora' is not loaded: this server hosts none: leave it empty"),
        ({"law": "1", "chess": "2"}, r"'lora' is not loaded: loaded are 'chess', 'law'$"),
        ({f"a{i:02}": "1" for i in range(20)}, r"loaded are 'a00', .*'a15', and 4 more$"),
    ],
    ids=["none", "two", "many"],
)
def test_adapter_that_is_not_loaded_is_refused_with_those_that_are(adapters: dict[str, str], says: str) -> None:
    wrong = request()
    wrong.adapter = "lora"
    with pytest.raises(UnknownTeacherError, match=says) as caught:
        prepared(wrong, hosted_teacher(adapters=adapters))
    assert (caught.value.field, caught.value.reason) == ("adapter", "UNKNOWN_ADAPTER")


@pytest.mark.parametrize(
    ("edit", "field"),
    [
        (bring_another_tokenizer, "tokenizer_id"),
        (ask_for_candidates, "responses[1].candidates"),
        (prompt_as_text, "prompt.text"),
        (prompt_as_chat, "prompt.chat"),
        (set_number("temperature", 0.5), "temperature"),
        (set_number("batch_invariant", True), "batch_invariant"),
    ],
)
def test_what_this_teacher_cannot_do_is_refused_not_ignored(edit: Edit, field: str) -> None:
    teacher = hosted_teacher(applies_temperature=False, is_batch_invariant_on_request=False, scores_candidates=False)
    wrong = request()
    edit(wrong)
    with pytest.raises(NotYetImplementedError) as caught:
        prepared(wrong, teacher)
    assert caught.value.field == field
    assert str(caught.value).startswith(f"{field}: ")


def test_engine_without_temperature_still_scores_at_one() -> None:
    assert prepared(request(), hosted_teacher(applies_temperature=False)).call.temperature == 1


def test_unknown_teacher_is_told_with_the_name_of_the_one_here() -> None:
    wrong = request()
    wrong.teacher = "dean"
    with pytest.raises(UnknownTeacherError, match="'dean' is not hosted here: ask for 'professor'") as caught:
        prepared(wrong, hosted_teacher())
    assert (caught.value.field, caught.value.reason) == ("teacher", "UNKNOWN_TEACHER")


@pytest.mark.parametrize("name", ["", "professor"])
def test_teacher_is_known_by_its_name_and_by_default(name: str) -> None:
    asked = request()
    asked.teacher = name
    assert prepared(asked, hosted_teacher()).call.teacher == name


@pytest.fixture
def reader(tokenizer: TeacherTokenizer) -> HostedTeacher:
    return hosted_teacher(tokenizer=tokenizer)


def test_text_is_tokenized_by_the_teacher_and_its_ids_are_returned(reader: HostedTeacher) -> None:
    asked = request()
    prompt_as_text(asked)
    call = prepared(asked, reader)
    assert call.prompt_ids_P.tolist() == tiny_tokenizer()("Hello")["input_ids"]
    assert len(call.prompt_ids_P) == 5
    assert call.returns_prompt_ids


@pytest.mark.parametrize(("omit_special_tokens", "first"), [(False, [1]), (True, [])])
def test_leading_token_of_the_tokenizer_may_be_left_out(omit_special_tokens: bool, first: list[int]) -> None:
    asked = request()
    prompt_as_text(asked)
    asked.prompt.text.omit_special_tokens = omit_special_tokens
    ids = prepared(asked, hosted_teacher(tokenizer=bos_tokenizer())).prompt_ids_P.tolist()
    assert ids == [*first, *tiny_tokenizer()("Hello")["input_ids"]]


def test_chat_is_rendered_by_the_teachers_template(reader: HostedTeacher) -> None:
    asked = request()
    prompt_as_chat(asked)
    call = prepared(asked, reader)
    rendered = "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n"
    assert call.prompt_ids_P.tolist() == tiny_tokenizer()(rendered, add_special_tokens=False)["input_ids"]
    assert call.returns_prompt_ids


def test_ids_of_the_caller_are_not_returned(reader: HostedTeacher) -> None:
    asked = request()
    asked.tokenizer_id = reader.tokenizer_id
    assert not prepared(asked, reader).returns_prompt_ids


def test_text_that_is_too_long_is_told(reader: HostedTeacher) -> None:
    asked = request(responses=[response(1)])
    asked.prompt.text.text = "x" * 64
    with pytest.raises(InvalidRequestError, match="more of the teacher's tokens than the 63 that there is"):
        prepared(asked, reader)


@pytest.mark.parametrize("kind", ["text", "chat"])
def test_special_token_that_the_model_has_no_row_for_is_refused_by_name(kind: str) -> None:
    image = tiny_tokenizer()
    image.add_special_tokens({"additional_special_tokens": ["<image>"]}, replace_extra_special_tokens=False)
    teacher, asked = hosted_teacher(vocabulary_size=259, tokenizer=TeacherTokenizer(image)), request()
    if kind == "text":
        asked.prompt.text.text = "a <image>"
    else:
        asked.prompt.chat.messages.add(role="user", content="a <image>")
    with pytest.raises(
        InvalidRequestError, match=r"holds '<image>', whose id 259 lies beyond the 259 tokens"
    ) as caught:
        prepared(asked, teacher)
    assert caught.value.reason == "TOKEN_OUT_OF_RANGE"
    assert caught.value.field.startswith(f"prompt.{kind}")


def test_candidates_are_as_large_as_their_message_and_hold_nothing_else_of_it() -> None:
    asked = request(responses=[response(4, 5)])
    ids = u16(1, 2, 299, 0)
    asked.responses[0].candidates.CopyFrom(pb.CandidateIds(ids=ids, num_per_position=2))
    named = prepared(asked, hosted_teacher()).responses[0].candidate_ids_TC
    assert named is not None
    assert (named.dtype, named.nbytes, named.tolist()) == (np.dtype("<u2"), len(ids.data), [[1, 2], [299, 0]])
    held = named
    while isinstance(held.base, np.ndarray):
        held = held.base
    assert held.base == ids.data
