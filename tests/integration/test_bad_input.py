"""Every mistake that a caller can make on the wire: the error names the field, and the server keeps serving."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator

import grpc
import numpy as np
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from preceptor.fingerprint import tokenizer_id
from preceptor.v1 import teacher_pb2 as pb
from preceptor.v1.teacher_pb2_grpc import TeacherServiceStub

from tests.integration.servers import RunningServer
from tests.tiny import tiny_tokenizer

VOCABULARY_SIZE = 259
MAX_MODEL_LEN = 512
MAX_MESSAGE_BYTES = 64 * 1024 * 1024


def ids(*values: int) -> pb.TokenIds:
    return pb.TokenIds(data=np.array(values, "<u2").tobytes(), dtype=pb.TOKEN_DTYPE_U16)


def good_request() -> pb.ScoreRequest:
    return pb.ScoreRequest(
        prompt=pb.Prompt(teacher_ids=ids(1, 2, 3)), responses=[pb.Response(ids=ids(4, 5))], top_k=4, temperature=1.0
    )


@pytest.fixture
def stub(hf_server: RunningServer) -> Iterator[TeacherServiceStub]:
    options = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]
    with grpc.insecure_channel(hf_server.address, options=options) as channel:
        yield TeacherServiceStub(channel)


def assert_still_serves(stub: TeacherServiceStub) -> None:
    answer = stub.Score(good_request(), timeout=30)
    assert answer.responses[0].status == bytes([1, 1])


def error_of(stub: TeacherServiceStub, request: pb.ScoreRequest) -> tuple[grpc.StatusCode, str, str]:
    """Code, field and message of the refusal."""
    with pytest.raises(grpc.RpcError) as caught:
        stub.Score(request, timeout=30)
    status = rpc_status.from_call(caught.value)
    info = error_details_pb2.ErrorInfo()
    assert status is not None, caught.value
    assert status.details[0].Unpack(info)
    assert info.domain == "preceptor"
    return caught.value.code(), info.metadata["field"], status.message


def with_prompt(*values: int) -> Callable[[pb.ScoreRequest], None]:
    return lambda request: request.prompt.teacher_ids.CopyFrom(ids(*values))


def with_response(*values: int) -> Callable[[pb.ScoreRequest], None]:
    return lambda request: request.responses[0].ids.CopyFrom(ids(*values))


def assign(name: str, value: object) -> Callable[[pb.ScoreRequest], None]:
    return lambda request: setattr(request, name, value)


def torn_column(request: pb.ScoreRequest) -> None:
    request.responses[0].ids.data = request.responses[0].ids.data[:-1]


def odd_u32_prompt(request: pb.ScoreRequest) -> None:
    request.prompt.teacher_ids.dtype = pb.TOKEN_DTYPE_U32


def no_dtype(request: pb.ScoreRequest) -> None:
    request.prompt.teacher_ids.dtype = pb.TOKEN_DTYPE_UNSPECIFIED


def short_mask(request: pb.ScoreRequest) -> None:
    request.responses[0].score_mask = b"\x01"


def empty_mask(request: pb.ScoreRequest) -> None:
    """Beside a response of which something is to be scored."""
    request.responses.add(ids=request.responses[0].ids)
    request.responses[0].score_mask = b"\x00\x00"


def no_responses(request: pb.ScoreRequest) -> None:
    del request.responses[:]


def no_prompt(request: pb.ScoreRequest) -> None:
    request.ClearField("prompt")


def empty_text(request: pb.ScoreRequest) -> None:
    request.prompt.text.text = ""
    request.prompt.text.omit_special_tokens = True


def empty_chat(request: pb.ScoreRequest) -> None:
    request.prompt.chat.SetInParent()


INVALID, NOT_FOUND, UNIMPLEMENTED = (
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.UNIMPLEMENTED,
)


def paper_tokens(*values: int) -> Callable[[pb.ScoreRequest], None]:
    return lambda request: request.paper_token_ids.extend(values)


def candidates(num_per_position: int, *values: int) -> Callable[[pb.ScoreRequest], None]:
    named = pb.CandidateIds(ids=ids(*values), num_per_position=num_per_position)
    return lambda request: request.responses[0].candidates.CopyFrom(named)


MISTAKES = [
    pytest.param(with_prompt(1, VOCABULARY_SIZE), INVALID, "prompt.teacher_ids", "259", id="prompt id outside"),
    pytest.param(with_response(65535), INVALID, "responses[0].ids", "65535", id="response id outside"),
    pytest.param(with_prompt(), INVALID, "prompt.teacher_ids", "empty", id="empty prompt"),
    pytest.param(no_prompt, INVALID, "prompt", "missing", id="no prompt"),
    pytest.param(empty_text, INVALID, "prompt.text.text", "empty", id="empty text"),
    pytest.param(empty_chat, INVALID, "prompt.chat.messages", "empty", id="empty chat"),
    pytest.param(with_response(), INVALID, "responses[0].ids", "empty", id="empty response"),
    pytest.param(no_responses, INVALID, "responses", "at least one", id="no responses"),
    pytest.param(
        candidates(0, 7, 8), INVALID, "responses[0].candidates.num_per_position", "[1, 259]", id="no candidates"
    ),
    pytest.param(
        candidates(260, *[7] * 520),
        INVALID,
        "responses[0].candidates.num_per_position",
        "[1, 259]",
        id="too many candidates",
    ),
    pytest.param(candidates(1), INVALID, "responses[0].candidates.ids", "empty", id="candidates without ids"),
    pytest.param(candidates(2, 7, 8, 9), INVALID, "responses[0].candidates.ids", "4 in all", id="candidates too few"),
    pytest.param(candidates(1, 7, 8, 9), INVALID, "responses[0].candidates.ids", "2 in all", id="candidates too many"),
    pytest.param(candidates(1, 7, 259), INVALID, "responses[0].candidates.ids", "259", id="candidate outside"),
    pytest.param(
        with_response(*[3] * MAX_MODEL_LEN), INVALID, "responses[0].ids", "max_model_len", id="beyond context"
    ),
    pytest.param(assign("top_k", 0), INVALID, "top_k", "[1, 259]", id="K 0"),
    pytest.param(assign("top_k", 260), INVALID, "top_k", "[1, 259]", id="K above the limit"),
    pytest.param(assign("temperature", 0.0), INVALID, "temperature", "0.0", id="temperature 0"),
    pytest.param(assign("temperature", -1.0), INVALID, "temperature", "-1.0", id="temperature negative"),
    pytest.param(assign("temperature", float("nan")), INVALID, "temperature", "nan", id="temperature NaN"),
    pytest.param(assign("temperature", float("inf")), INVALID, "temperature", "inf", id="temperature infinite"),
    pytest.param(assign("teacher", "nobody"), NOT_FOUND, "teacher", "'teacher'", id="unknown teacher"),
    pytest.param(assign("adapter", "lora"), NOT_FOUND, "adapter", "hosts none", id="adapter"),
    pytest.param(assign("tokenizer_id", "x"), NOT_FOUND, "tokenizer_id", "register", id="unknown tokenizer"),
    pytest.param(assign("segmentation", 99), INVALID, "segmentation", "99 is unknown", id="unknown policy"),
    pytest.param(assign("segmentation", 4), INVALID, "paper_token_ids", "is empty", id="paper without ids"),
    pytest.param(paper_tokens(3), INVALID, "paper_token_ids", "belongs to PAPER", id="paper ids without paper"),
    pytest.param(assign("request_id", "x" * 129), INVALID, "request_id", "128", id="long request id"),
    pytest.param(assign("logprob_dtype", 9), INVALID, "logprob_dtype", "9", id="unknown logprob dtype"),
    pytest.param(torn_column, INVALID, "responses[0].ids", "3 bytes", id="torn column"),
    pytest.param(odd_u32_prompt, INVALID, "prompt.teacher_ids", "6 bytes", id="wrong width"),
    pytest.param(no_dtype, INVALID, "prompt.teacher_ids", "dtype 0", id="no dtype"),
    pytest.param(short_mask, INVALID, "responses[0].score_mask", "1 entries for 2", id="short mask"),
    pytest.param(empty_mask, INVALID, "responses[0].score_mask", "every token", id="mask of nothing"),
]


@pytest.mark.parametrize(("spoil", "code", "field", "words"), MISTAKES)
def test_a_mistake_is_refused_by_field_and_the_server_keeps_serving(
    stub: TeacherServiceStub,
    spoil: Callable[[pb.ScoreRequest], None],
    code: grpc.StatusCode,
    field: str,
    words: str,
) -> None:
    request = good_request()
    spoil(request)
    seen_code, seen_field, message = error_of(stub, request)
    assert (seen_code, seen_field) == (code, field)
    assert words in message
    assert_still_serves(stub)


def test_candidates_of_a_response_that_the_teacher_would_cut_anew_are_refused(stub: TeacherServiceStub) -> None:
    request = good_request()
    request.segmentation = pb.SEGMENTATION_POLICY_CANONICAL
    candidates(1, 7, 8)(request)
    code, field, message = error_of(stub, request)
    assert (code, field) == (UNIMPLEMENTED, "responses[0].candidates")
    assert "AS_IS, MASK or PAPER" in message
    assert_still_serves(stub)


def test_a_message_above_the_limit_is_refused_and_the_server_keeps_serving(stub: TeacherServiceStub) -> None:
    request = good_request()
    request.prompt.teacher_ids.data = bytes(MAX_MESSAGE_BYTES + 2)
    with pytest.raises(grpc.RpcError) as caught:
        stub.Score(request, timeout=60)
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert_still_serves(stub)


def test_bytes_that_are_no_protobuf_do_not_hurt_the_server(hf_server: RunningServer, stub: TeacherServiceStub) -> None:
    with grpc.insecure_channel(hf_server.address) as channel:
        call: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary("/preceptor.v1.TeacherService/Score")
        with pytest.raises(grpc.RpcError, match="Error parsing message"):
            call(b"\xff" * 100, timeout=30)
    assert_still_serves(stub)


def bytes_of_model(vocab: dict[str, int]) -> bytes:
    model = {"type": "BPE", "vocab": vocab, "merges": []}
    return json.dumps({"model": model, "decoder": {"type": "ByteLevel"}}).encode()


def test_a_tokenizer_that_the_server_lacks_is_asked_for(stub: TeacherServiceStub) -> None:
    answer = stub.RegisterTokenizer(pb.RegisterTokenizerRequest(tokenizer_id="other"), timeout=30)
    assert answer.needs_tokenizer
    assert not answer.HasField("report")


@pytest.mark.parametrize(
    ("tokenizer_json", "message"),
    [
        pytest.param(b"{", "is not JSON", id="torn"),
        pytest.param(b"\xff\xfe", "UTF-8", id="not UTF-8"),
        pytest.param(b"[]", "is not a tokenizer.json", id="a list"),
        pytest.param(b"[" * 100_000, "tokenizer_json", id="deep nesting"),
        pytest.param(bytes_of_model({"a": 0, "b": 0}), "one id to several tokens", id="duplicate ids"),
        pytest.param(bytes_of_model({"a": 0, "b": 2**32 - 1}), "claims 4294967296 ids", id="id beyond size"),
    ],
)
def test_a_tokenizer_that_is_none_is_refused_with_a_reason(
    stub: TeacherServiceStub, tokenizer_json: bytes, message: str
) -> None:
    named = tokenizer_id(tokenizer_json.decode(), None) if b"vocab" in tokenizer_json else "hostile"
    with pytest.raises(grpc.RpcError, match=message) as caught:
        stub.RegisterTokenizer(
            pb.RegisterTokenizerRequest(tokenizer_id=named, tokenizer_json=tokenizer_json), timeout=60
        )
    assert caught.value.code() is INVALID
    assert_still_serves(stub)


def test_a_tokenizer_under_another_ones_name_is_refused(stub: TeacherServiceStub) -> None:
    tokenizer_json = tiny_tokenizer().backend_tokenizer.to_str().encode()
    with pytest.raises(grpc.RpcError, match="is not the fingerprint of this tokenizer_json") as caught:
        stub.RegisterTokenizer(
            pb.RegisterTokenizerRequest(tokenizer_id="0" * 64, tokenizer_json=tokenizer_json), timeout=60
        )
    assert caught.value.code() is INVALID


def test_registering_without_an_id_is_refused_by_field(stub: TeacherServiceStub) -> None:
    with pytest.raises(grpc.RpcError, match="tokenizer_id: is missing"):
        stub.RegisterTokenizer(pb.RegisterTokenizerRequest(), timeout=30)


def test_the_teachers_own_tokenizer_registers_as_identical(stub: TeacherServiceStub) -> None:
    own = stub.GetInfo(pb.GetInfoRequest(), timeout=30).teachers[0].tokenizer_id
    answer = stub.RegisterTokenizer(pb.RegisterTokenizerRequest(tokenizer_id=own), timeout=30)
    assert answer.report.relation == pb.VOCABULARY_RELATION_IDENTICAL
