from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from preceptor import __version__, wire
from preceptor.v1 import teacher_pb2 as pb
from preceptor.wire import LogprobDtype, PositionStatus, SegmentationPolicy, TokenDtype
from preceptor_server.alignment.teacher_tokenizer import TeacherTokenizer
from preceptor_server.calls import ScoredCall, ScoredResponse, Timings
from preceptor_server.config import LimitsConfig
from preceptor_server.edges.grpc.description import encode_info
from preceptor_server.edges.grpc.encoding import encode_score_response
from preceptor_server.types import ResponseColumns

from tests.tiny import tiny_tokenizer
from tests.unit.server.hosting import hosted_teacher

FIRST = ResponseColumns(
    status_T=np.array([PositionStatus.OK, PositionStatus.EXCLUDED, PositionStatus.OK], np.uint8),
    support_ids_NK=np.array([[7, 299], [0, 3]], np.int64),
    support_logprobs_NK=np.array([[-0.5, -1.25], [-0.25, -np.inf]], np.float32),
    sampled_logprobs_N=np.array([-0.1, -7.3], np.float32),
    log_tail_mass_N=np.array([-3.7, -np.inf], np.float32),
    entropies_N=np.array([1.9, 0.3], np.float32),
)
NON_FINITE = ResponseColumns(
    status_T=np.array([PositionStatus.NON_FINITE], np.uint8),
    support_ids_NK=np.zeros((0, 2), np.int64),
    support_logprobs_NK=np.zeros((0, 2), np.float32),
    sampled_logprobs_N=np.zeros(0, np.float32),
    log_tail_mass_N=np.zeros(0, np.float32),
    entropies_N=np.zeros(0, np.float32),
)
SCORED = ScoredCall(
    responses=(
        ScoredResponse(columns=FIRST, digest=b"1" * 32),
        ScoredResponse(columns=NON_FINITE, digest=b"2" * 32),
    ),
    request_id="r-7",
    teacher="professor",
    revision="step-7",
    adapter="",
    tokenizer_id="none-300",
    top_k=2,
    temperature=0.7,
    logprob_dtype=LogprobDtype.F16,
    segmentation=SegmentationPolicy.AS_IS,
    student_vocabulary_size=300,
    teacher_vocabulary_size=300,
    prompt_ids_P=np.array([1, 2], np.int64),
    returns_prompt_ids=False,
    timings=Timings(decode_ms=0.5, queue_ms=1.5, forward_ms=2.5, total_ms=9.0),
)


def encode(scored: ScoredCall = SCORED) -> pb.ScoreResponse:
    return encode_score_response(scored)


def test_answer_says_what_was_asked_and_who_answered() -> None:
    answer = encode()
    assert (answer.request_id, answer.teacher, answer.revision) == ("r-7", "professor", "step-7")
    assert (answer.tokenizer_id, answer.adapter) == ("none-300", "")
    assert encode(replace(SCORED, adapter="maths")).adapter == "maths"
    assert (answer.top_k, answer.temperature) == (2, 0.7)
    assert answer.timings == pb.Timings(decode_ms=0.5, queue_ms=1.5, forward_ms=2.5, total_ms=9.0)


@pytest.mark.parametrize("logprob_dtype", LogprobDtype)
@pytest.mark.parametrize(
    ("vocabulary_size", "token_dtype"), [(65_536, TokenDtype.U16), (65_537, TokenDtype.U32)]
)  # fmt: skip
def test_columns_survive_the_wire(logprob_dtype: LogprobDtype, vocabulary_size: int, token_dtype: TokenDtype) -> None:
    answer = encode(replace(SCORED, logprob_dtype=logprob_dtype, student_vocabulary_size=vocabulary_size))
    assert (int(answer.token_dtype), int(answer.logprob_dtype)) == (token_dtype.value, logprob_dtype.value)
    scores = answer.responses[0]
    assert wire.decode_statuses(scores.status, num_tokens=3, field="status").tolist() == [1, 2, 1]
    ids = wire.decode_token_ids(scores.support_ids, answer.token_dtype, field="support_ids")
    assert ids.tolist() == [7, 299, 0, 3]
    logprobs = wire.decode_logprobs(scores.support_logprobs, answer.logprob_dtype, field="support_logprobs")
    assert logprobs.tolist() == [-0.5, -1.25, -0.25, -np.inf]


def test_columns_of_one_number_per_row_are_always_float32() -> None:
    scores = encode().responses[0]
    assert FIRST.entropies_N is not None
    for data, column in (
        (scores.sampled_logprobs, FIRST.sampled_logprobs_N),
        (scores.log_tail_mass, FIRST.log_tail_mass_N),
        (scores.entropies, FIRST.entropies_N),
    ):
        decoded = wire.decode_logprobs(data, LogprobDtype.F32, field="column")
        np.testing.assert_array_equal(decoded, column)


def test_entropies_that_were_not_computed_are_left_out() -> None:
    without = replace(SCORED.responses[0], columns=replace(FIRST, entropies_N=None))
    scored = replace(SCORED, responses=(without, SCORED.responses[1]))
    scores = encode(scored).responses[0]
    assert scores.entropies == b""
    assert len(scores.sampled_logprobs) == 8


@pytest.mark.parametrize("logprob_dtype", LogprobDtype)
def test_candidates_are_stored_like_the_support_row_by_row(logprob_dtype: LogprobDtype) -> None:
    named = replace(FIRST, candidate_logprobs_NC=np.array([[-0.5, -9.25, -np.inf], [-1, -2, -0.25]], np.float32))
    responses = (replace(SCORED.responses[0], columns=named), SCORED.responses[1])
    answer = encode(replace(SCORED, responses=responses, logprob_dtype=logprob_dtype))
    data = answer.responses[0].candidate_logprobs
    assert len(data) == 6 * (2 if logprob_dtype is LogprobDtype.F16 else 4)
    decoded = wire.decode_logprobs(data, answer.logprob_dtype, field="candidate_logprobs")
    assert decoded.tolist() == [-0.5, -9.25, -np.inf, -1, -2, -0.25]
    assert answer.responses[1].candidate_logprobs == b""


def test_response_without_a_finite_row_has_a_status_and_empty_columns() -> None:
    scores = encode().responses[1]
    assert scores.status == bytes([PositionStatus.NON_FINITE])
    assert scores.support_ids == scores.support_logprobs == scores.sampled_logprobs == b""
    assert scores.log_tail_mass == scores.entropies == scores.candidate_logprobs == b""


def test_every_response_carries_its_own_digest() -> None:
    assert [scores.digest for scores in encode().responses] == [b"1" * 32, b"2" * 32]


def test_prompt_ids_travel_only_where_the_caller_cannot_know_them() -> None:
    assert not encode().HasField("prompt_ids")
    answer = encode(replace(SCORED, returns_prompt_ids=True, teacher_vocabulary_size=70_000))
    # They are the teacher's, whose vocabulary may need wider ids than the student's.
    assert (answer.prompt_ids.dtype, answer.token_dtype) == (pb.TOKEN_DTYPE_U32, pb.TOKEN_DTYPE_U16)
    assert wire.decode_token_ids(answer.prompt_ids.data, answer.prompt_ids.dtype, field="prompt").tolist() == [1, 2]


def test_answer_names_the_policy_and_the_students_tokenizer() -> None:
    answer = encode(replace(SCORED, tokenizer_id="abc", segmentation=SegmentationPolicy.CANONICAL))
    assert (answer.tokenizer_id, answer.segmentation) == ("abc", pb.SEGMENTATION_POLICY_CANONICAL)


def test_teachers_own_reading_travels_where_it_is_another_than_the_students() -> None:
    own = encode().responses[0]
    assert not own.HasField("teacher_ids")
    assert own.teacher_rows == b""
    first = replace(
        SCORED.responses[0],
        teacher_ids_M=np.array([5, 69_999, 7]),
        teacher_rows_N=np.array([0, 2]),
        unmapped_mass=0.25,
    )
    scored = replace(SCORED, responses=(first, SCORED.responses[1]), teacher_vocabulary_size=70_000)
    scores = encode(scored).responses[0]
    ids = wire.decode_token_ids(scores.teacher_ids.data, scores.teacher_ids.dtype, field="teacher_ids")
    assert ids.tolist() == [5, 69_999, 7]
    assert np.frombuffer(scores.teacher_rows, "<u4").tolist() == [0, 2]
    assert scores.unmapped_mass == 0.25


def test_info_of_a_teacher_without_a_tokenizer() -> None:
    limits = LimitsConfig(max_top_k=1000, max_responses=3, max_group_tokens=99, max_message_bytes=70_000)
    info = encode_info([hosted_teacher(limits=limits)], include_tokenizer=True)
    assert info.server_version == __version__
    # K is bounded by the vocabulary too.
    expected = pb.Limits(
        max_top_k=300,
        max_responses=3,
        max_group_tokens=99,
        max_message_bytes=70_000,
        max_queue_tokens=1_000_000,
        max_tokenizer_bytes=50_331_648,
    )
    assert info.limits == expected
    assert list(info.teachers) == [
        pb.TeacherInfo(
            name="professor",
            revision="fake-300",
            engine="fake",
            model="fake",
            dtype="float32",
            device="cpu",
            vocabulary_size=300,
            max_model_len=64,
            tokenizer_id="none-300",
            end_token_ids=[0],
            capabilities=pb.Capabilities(temperature=True, batch_invariant=True, candidates=True, entropies=True),
            limits=expected,
        )
    ]


def test_info_lists_the_adapters_with_the_revision_that_their_answers_carry() -> None:
    teacher = hosted_teacher(adapters={"law": "r-law", "chess": "r-chess"})
    adapters = encode_info([teacher], include_tokenizer=False).teachers[0].adapters
    assert [(adapter.name, adapter.revision) for adapter in adapters] == [("chess", "r-chess"), ("law", "r-law")]


def test_info_promises_new_weights_only_where_there_is_a_folder_for_them(tmp_path: Path) -> None:
    teachers = [hosted_teacher(), hosted_teacher(weights_folder=tmp_path)]
    infos = [encode_info([teacher], include_tokenizer=False).teachers[0] for teacher in teachers]
    assert [info.capabilities.weight_updates for info in infos] == [False, True]


def test_info_promises_no_more_than_the_engine_does() -> None:
    teacher = hosted_teacher(
        applies_temperature=False,
        is_batch_invariant_on_request=False,
        scores_candidates=False,
        computes_entropies=False,
    )
    assert encode_info([teacher], include_tokenizer=False).teachers[0].capabilities == pb.Capabilities()


def test_info_of_a_teacher_with_a_tokenizer() -> None:
    tokenizer = TeacherTokenizer(tiny_tokenizer())
    teacher = encode_info([hosted_teacher(tokenizer=tokenizer)], include_tokenizer=False).teachers[0]
    assert (teacher.tokenizer_id, teacher.vocabulary_id) == (tokenizer.tokenizer_id, tokenizer.vocabulary_id)
    assert [(token.id, token.text) for token in teacher.special_tokens] == [
        (0, "<|endoftext|>"),
        (1, "<|im_start|>"),
        (2, "<|im_end|>"),
    ]
    assert teacher.has_chat_template
    assert teacher.capabilities.other_tokenizers
    assert teacher.tokenizer_json == b""


def test_tokenizer_is_sent_where_it_is_asked_for() -> None:
    tokenizer = TeacherTokenizer(tiny_tokenizer())
    teacher = encode_info([hosted_teacher(tokenizer=tokenizer)], include_tokenizer=True).teachers[0]
    assert teacher.tokenizer_json.decode() == tokenizer.json
