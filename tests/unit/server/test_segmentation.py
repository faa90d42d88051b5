"""Which alignment and policy a request gets, what is refused, and what is answered where nothing can be scored."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest
from preceptor.v1 import teacher_pb2 as pb
from preceptor.wire import PositionStatus, SegmentationPolicy, VocabularyRelation, encode_token_ids
from preceptor_server.alignment.handover import Registration
from preceptor_server.alignment.teacher_tokenizer import TeacherTokenizer
from preceptor_server.alignment.types import Alignment
from preceptor_server.config import LimitsConfig
from preceptor_server.edges.grpc.decoding import decode_score_request
from preceptor_server.edges.grpc.registration import check_registers_nothing, decode_registration, encode_report
from preceptor_server.errors import InvalidRequestError, NotYetImplementedError, UnknownTokenizerError
from preceptor_server.hosted import HostedTeacher
from preceptor_server.scoring import score_call
from preceptor_server.segmentation import choose_alignment
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from tests.unit.server.alignment.tokenizers_for_tests import byte_level, gemma_like, permuted
from tests.unit.server.hosting import bos_tokenizer, hosted_teacher
from tests.unit.server.preparing import CALLER, prepared_here

UNSPECIFIED, AS_IS = pb.SEGMENTATION_POLICY_UNSPECIFIED, pb.SEGMENTATION_POLICY_AS_IS
MASK, CANONICAL, PAPER = (
    pb.SEGMENTATION_POLICY_MASK,
    pb.SEGMENTATION_POLICY_CANONICAL,
    pb.SEGMENTATION_POLICY_PAPER,
)


def tokenizer_of(tokenizer_json: str) -> TeacherTokenizer:
    return TeacherTokenizer(PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(tokenizer_json)))


def teacher_of(tokenizer: TeacherTokenizer, *, limits: LimitsConfig | None = None) -> HostedTeacher:
    return hosted_teacher(vocabulary_size=tokenizer.vocabulary_size, tokenizer=tokenizer, limits=limits)


async def register(teacher: HostedTeacher, tokenizer: TeacherTokenizer, *, vocabulary_size: int = 0) -> Alignment:
    assert teacher.aligner is not None
    alignment = await teacher.aligner.registry.register(
        Registration(
            tokenizer_id=tokenizer.tokenizer_id,
            tokenizer_json=tokenizer.json.encode(),
            vocabulary_size=vocabulary_size,
        )
    )
    assert alignment is not None
    return alignment


def ids(*values: int) -> pb.TokenIds:
    return pb.TokenIds(data=encode_token_ids(np.array(values), dtype=2), dtype=pb.TOKEN_DTYPE_U32)  # type: ignore[arg-type]  # an IntEnum's value


def request(
    *values: int, tokenizer_id: str = "", policy: pb.SegmentationPolicy.ValueType = UNSPECIFIED
) -> pb.ScoreRequest:
    return pb.ScoreRequest(
        tokenizer_id=tokenizer_id,
        prompt=pb.Prompt(student_ids=ids(5, 6)),
        responses=[pb.Response(ids=ids(*values))],
        top_k=4,
        temperature=1.0,
        segmentation=policy,
    )


async def test_default_is_as_is_where_ids_correspond_and_canonical_elsewhere() -> None:
    teacher = teacher_of(tokenizer_of(byte_level()))
    kin = await register(teacher, tokenizer_of(permuted(byte_level())))
    stranger = await register(teacher, tokenizer_of(gemma_like()))
    assert choose_alignment(decode_score_request(request(7)), teacher) == (None, SegmentationPolicy.AS_IS)
    assert choose_alignment(decode_score_request(request(7, tokenizer_id=kin.tokenizer_id)), teacher) == (
        kin,
        SegmentationPolicy.AS_IS,
    )
    chosen = choose_alignment(decode_score_request(request(7, tokenizer_id=stranger.tokenizer_id)), teacher)
    assert chosen == (stranger, SegmentationPolicy.CANONICAL)
    own, policy = choose_alignment(decode_score_request(request(7, policy=MASK)), teacher)
    assert policy is SegmentationPolicy.MASK
    assert own is not None
    assert own.pairing.relation is VocabularyRelation.IDENTICAL


@pytest.mark.parametrize("policy", [AS_IS, MASK, PAPER])
async def test_strangers_are_scored_canonically_or_not_at_all(policy: pb.SegmentationPolicy.ValueType) -> None:
    teacher = teacher_of(tokenizer_of(byte_level()))
    stranger = await register(teacher, tokenizer_of(gemma_like()))
    with pytest.raises(InvalidRequestError, match="OVERLAPPING, not one to one: use CANONICAL") as caught:
        choose_alignment(decode_score_request(request(7, tokenizer_id=stranger.tokenizer_id, policy=policy)), teacher)
    assert (caught.value.field, caught.value.reason) == ("segmentation", "NOT_ONE_TO_ONE")


async def test_unregistered_tokenizer_is_unknown() -> None:
    with pytest.raises(UnknownTokenizerError, match="register it") as caught:
        choose_alignment(decode_score_request(request(7, tokenizer_id="0123")), teacher_of(tokenizer_of(byte_level())))
    assert caught.value.reason == "UNKNOWN_TOKENIZER"


@pytest.mark.parametrize(
    ("policy", "listed", "message"),
    [
        (PAPER, [], "is empty: PAPER needs at least one id"),
        (MASK, [3], "belongs to PAPER, not to MASK"),
        (UNSPECIFIED, [3], "belongs to PAPER, not to AS_IS"),
        (PAPER, [10**6], "outside the vocabulary"),
        (PAPER, [3] * 2000, "at most 1024"),
    ],
)
def test_paper_tokens_come_with_paper_and_inside_the_vocabulary(
    policy: pb.SegmentationPolicy.ValueType, listed: list[int], message: str
) -> None:
    wrong = request(7, policy=policy)
    wrong.paper_token_ids.extend(listed)
    with pytest.raises(InvalidRequestError, match=message) as caught:
        choose_alignment(decode_score_request(wrong), teacher_of(tokenizer_of(byte_level())))
    assert caught.value.field == "paper_token_ids"


def test_teacher_without_a_tokenizer_segments_nothing_and_says_so() -> None:
    assert choose_alignment(decode_score_request(request(7, policy=AS_IS)), hosted_teacher()) == (
        None,
        SegmentationPolicy.AS_IS,
    )
    for policy in (MASK, CANONICAL, PAPER):
        with pytest.raises(NotYetImplementedError, match="no tokenizer"):
            choose_alignment(decode_score_request(request(7, policy=policy)), hosted_teacher())
    own = Registration(tokenizer_id="none-300")
    check_registers_nothing(own, hosted_teacher())
    with pytest.raises(NotYetImplementedError, match="special_pairs"):
        check_registers_nothing(Registration(tokenizer_id="none-300", special_pairs={"a": "b"}), hosted_teacher())


async def test_students_ids_are_checked_against_its_own_vocabulary() -> None:
    teacher = teacher_of(tokenizer_of(byte_level()))
    tokenizer = tokenizer_of(gemma_like())
    stranger = await register(teacher, tokenizer, vocabulary_size=1000)
    assert (
        await prepared_here(request(999, tokenizer_id=stranger.tokenizer_id), teacher)
    ).student_vocabulary_size == 1000
    with pytest.raises(InvalidRequestError, match=r"token id 1000 at position 0 is outside the vocabulary \[0, 1000\)"):
        await prepared_here(request(1000, tokenizer_id=stranger.tokenizer_id), teacher)


async def test_strangers_prompt_is_read_as_the_teacher_reads_texts() -> None:
    tokenizer = bos_tokenizer()
    teacher = teacher_of(tokenizer)
    strange = tokenizer_of(gemma_like())
    stranger = await register(teacher, strange)
    asked = request(7, tokenizer_id=stranger.tokenizer_id)
    prompt = strange.encode("the dog", add_special_tokens=False, field="prompt")
    asked.prompt.student_ids.CopyFrom(ids(*prompt.tolist()))
    call = await prepared_here(asked, teacher)
    assert call.prompt_ids_P.tolist() == tokenizer.encode("the dog", add_special_tokens=True, field="prompt").tolist()
    assert call.prompt_ids_P[0] == 1
    assert call.sent_prompt_ids.tolist() == prompt.tolist()
    assert call.returns_prompt_ids


async def test_prompt_with_a_special_token_that_the_teacher_lacks_is_refused() -> None:
    teacher = teacher_of(tokenizer_of(gemma_like()))
    strange = tokenizer_of(byte_level(specials=("<|end|>", "<|tool|>")))
    stranger = await register(teacher, strange)
    asked = request(40, tokenizer_id=stranger.tokenizer_id)
    asked.prompt.student_ids.CopyFrom(ids(40, 1))
    with pytest.raises(InvalidRequestError, match=r"'<\|tool\|>' at position 1 has no counterpart") as caught:
        await prepared_here(asked, teacher)
    assert (caught.value.field, caught.value.reason) == ("prompt.student_ids", "UNMAPPED_TOKEN")


async def test_response_of_which_nothing_has_a_counterpart_is_answered_without_asking_the_model() -> None:
    teacher = teacher_of(tokenizer_of(gemma_like()))
    stranger = await register(teacher, tokenizer_of(byte_level(specials=("<|end|>", "<|tool|>"))))
    asked = request(1, 1, tokenizer_id=stranger.tokenizer_id)
    asked.prompt.text.text = "the dog"
    # The scheduler is not started: a question to the model would never be answered.
    scored = await score_call(decode_score_request(asked), teacher, caller=CALLER, timeout_seconds=1)
    assert scored.responses[0].columns.status_T.tolist() == [PositionStatus.SPECIAL] * 2
    assert scored.responses[0].columns.support_ids_NK.shape == (0, 4)


async def test_teachers_own_reading_counts_against_the_limits() -> None:
    limits = LimitsConfig(max_group_tokens=9)
    teacher = teacher_of(bos_tokenizer(), limits=limits)  # one token per byte
    strange = tokenizer_of(gemma_like())
    stranger = await register(teacher, strange)
    response = strange.encode("the other brothers", add_special_tokens=False, field="x").tolist()
    asked = request(*response[:3], tokenizer_id=stranger.tokenizer_id)
    asked.prompt.text.text = "a"
    with pytest.raises(InvalidRequestError, match="above max_group_tokens=9") as caught:
        await score_call(decode_score_request(asked), teacher, caller=CALLER, timeout_seconds=1)
    assert caught.value.field == "responses"


def test_pair_that_is_given_twice_is_refused() -> None:
    twice = [pb.SpecialPair(student="<a>", teacher="<b>"), pb.SpecialPair(student="<a>", teacher="<c>")]
    with pytest.raises(InvalidRequestError, match="'<a>' is paired twice") as caught:
        decode_registration(pb.RegisterTokenizerRequest(tokenizer_id="x", special_pairs=twice))
    assert caught.value.field == "special_pairs[1].student"


@pytest.mark.parametrize("field", ["end_token_ids", "teacher_end_token_ids"])
def test_more_end_tokens_than_can_be_asked_for_are_refused(field: str) -> None:
    request = pb.RegisterTokenizerRequest(tokenizer_id="x")
    getattr(request, field).extend(range(65))
    with pytest.raises(InvalidRequestError, match="holds 65 ids, more than 64: name those in use") as caught:
        decode_registration(request)
    assert caught.value.field == field


async def test_report_names_tokens_by_their_text() -> None:
    teacher = teacher_of(tokenizer_of(byte_level()))
    alignment = await register(teacher, tokenizer_of(byte_level(specials=("<|end|>", "<|tool|>"))))
    assert teacher.aligner is not None
    report = encode_report(alignment, teacher.aligner.vocabulary)
    assert [(token.id, token.text) for token in report.masked] == [(1, "<|tool|>")]
    assert [(pair.student.text, pair.teacher.text, pair.reason) for pair in report.paired] == [
        ("<|end|>", "<|end|>", "same text")
    ]
    assert report.relation == pb.VOCABULARY_RELATION_OVERLAPPING
    assert not report.is_one_to_one
    assert 0.9 < report.mapped_share < 1


async def test_group_in_other_ids_counts_those_of_the_student_too_while_it_waits() -> None:
    teacher = teacher_of(tokenizer_of(byte_level()))
    kin = await register(teacher, tokenizer_of(permuted(byte_level())))
    asked = request(7, 8, tokenizer_id=kin.tokenizer_id)
    asked.responses[0].candidates.CopyFrom(pb.CandidateIds(ids=ids(*range(200)), num_per_position=100))
    call = decode_score_request(asked)
    waiting = asyncio.create_task(score_call(call, teacher, caller=CALLER, timeout_seconds=5))
    async with asyncio.timeout(5):
        while not teacher.scheduler.num_waiting:
            await asyncio.sleep(0.01)
    counted = teacher.scheduler.num_waiting_bytes
    waiting.cancel()
    # 4 bytes each of the student's candidates, 2 of the teacher's.
    assert counted >= call.num_bytes + 200 * 2
    assert call.num_bytes >= 200 * 4
