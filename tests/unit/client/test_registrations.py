"""How a tokenizer is handed over, and handed over again when the server has lost it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable

import grpc
import pytest
from preceptor.fingerprint import tokenizer_id
from preceptor.v1 import teacher_pb2
from preceptor.wire import VocabularyRelation
from preceptor_client import BlockingTeacherClient, GroupScores, RetryPolicy, StudentIds, TeacherClient
from preceptor_client.errors import (
    CorruptAnswerError,
    InvalidRequestError,
    MessageTooLargeError,
    NotImplementedByServerError,
    TeacherUnavailableError,
)
from preceptor_client.registrations import MAX_RENEWALS
from preceptor_client.retry import RetryEvent
from preceptor_client.types import PairedTokens, SpecialToken

from tests.unit.client.scripted_teacher import UNKNOWN_TOKENIZER, Abort, RegistrationLie, ScriptedTeacher, serving

TOKENIZER = json.dumps({"model": {"vocab": {"a": 0}, "merges": []}, "added_tokens": []})
OTHER = json.dumps({"model": {"vocab": {"b": 0}, "merges": []}, "added_tokens": []})
QUICK = RetryPolicy(initial_seconds=0.001, max_seconds=0.01)
GONE = Abort(code=grpc.StatusCode.UNAVAILABLE, message="draining")
Change = Callable[[teacher_pb2.RegisterTokenizerResponse], None]


async def score(client: TeacherClient, tokenizer: str, **options: float) -> GroupScores:
    return await client.score(
        StudentIds([1]), [[2]], top_k=2, tokenizer_id=tokenizer, timeout_seconds=options.get("timeout_seconds")
    )


def loses_again(teacher: ScriptedTeacher) -> Change:
    """Takes the tokenizer and forgets it before the next score."""
    return lambda answer: teacher.known.clear()


async def test_json_travels_only_when_the_server_lacks_it() -> None:
    teacher = ScriptedTeacher()
    async with serving(teacher) as address, TeacherClient(address) as client:
        first = await client.register_tokenizer(TOKENIZER, chat_template="template")
        second = await client.register_tokenizer(TOKENIZER, chat_template="template")
    assert [request.tokenizer_json for request in teacher.registrations] == [b"", TOKENIZER.encode(), b""]
    assert {request.tokenizer_id for request in teacher.registrations} == {tokenizer_id(TOKENIZER, "template")}
    assert first == second
    assert first.tokenizer_id == f"with-ends-{tokenizer_id(TOKENIZER, 'template')[:8]}"


async def test_report_is_the_servers() -> None:
    async with serving(ScriptedTeacher()) as address, TeacherClient(address) as client:
        report = (await client.register_tokenizer(TOKENIZER)).report
    eos, end = SpecialToken(id=7, text="<eos>"), SpecialToken(id=3, text="<end>")
    assert (report.relation, report.is_one_to_one) == (VocabularyRelation.IDENTICAL, True)
    assert (report.mapped_share, report.projected_share) == (1.0, 0.5)
    assert report.paired == (PairedTokens(student=eos, teacher=end, reason="end of response"),)
    assert (report.student_end_tokens, report.teacher_end_tokens) == ((eos,), (end,))
    assert (report.differences, report.masked, report.dropped, report.warnings) == (("chat_template",), (), (), ())


async def test_every_argument_reaches_the_server_both_times() -> None:
    teacher = ScriptedTeacher()
    async with serving(teacher) as address, TeacherClient(address) as client:
        await client.register_tokenizer(
            TOKENIZER,
            chat_template="template",
            teacher="tutor",
            end_token_ids=[7, 8],
            teacher_end_token_ids=[3],
            special_pairs={"<a>": "<b>"},
            vocabulary_size=100,
        )
    assert len(teacher.registrations) == 2
    for sent in teacher.registrations:
        assert (sent.teacher, sent.chat_template, sent.vocabulary_size) == ("tutor", "template", 100)
        assert (list(sent.end_token_ids), list(sent.teacher_end_token_ids)) == ([7, 8], [3])
        assert [(pair.student, pair.teacher) for pair in sent.special_pairs] == [("<a>", "<b>")]


def lacks_it_still(answer: teacher_pb2.RegisterTokenizerResponse) -> None:
    answer.Clear()
    answer.needs_tokenizer = True


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lacks_it_still, "needs_tokenizer"),
        (lambda answer: answer.ClearField("report"), "report is absent"),
        (lambda answer: answer.ClearField("tokenizer_id"), "tokenizer_id is empty"),
        (lambda answer: answer.report.ClearField("relation"), "report.relation is 0"),
        (lambda answer: setattr(answer.report, "relation", 9), "report.relation is 9"),
        (lambda answer: setattr(answer.report, "mapped_share", 1.5), "report.mapped_share is 1.5"),
        (lambda answer: setattr(answer.report, "projected_share", float("nan")), "report.projected_share is nan"),
    ],
)
async def test_answer_that_says_too_little_is_refused(change: Change, says: str) -> None:
    teacher = ScriptedTeacher(
        registration_script=[RegistrationLie(change=lambda answer: None), RegistrationLie(change=change)]
    )
    async with serving(teacher) as address, TeacherClient(address) as client:
        with pytest.raises(CorruptAnswerError) as caught:
            await client.register_tokenizer(TOKENIZER)
    assert str(caught.value).startswith(says)
    assert len(teacher.registrations) == 2


async def test_tokenizer_beyond_the_message_limit_says_so_and_is_not_sent() -> None:
    teacher = ScriptedTeacher()
    large = json.dumps({"model": {"vocab": {f"token {index}": index for index in range(200)}}})
    async with serving(teacher) as address, TeacherClient(address, max_message_bytes=1000, retry=QUICK) as client:
        with pytest.raises(MessageTooLargeError, match=r"tokenizer.json has to fit.*raise max_message_bytes here"):
            await client.register_tokenizer(large)
    assert len(teacher.registrations) == 1


async def test_tokenizer_beyond_the_servers_message_limit_says_so_and_is_sent_once() -> None:
    events: list[RetryEvent] = []
    large = json.dumps({"model": {"vocab": {f"token {index}": index for index in range(200)}}})
    async with (
        serving(ScriptedTeacher(), max_message_bytes=1000) as address,
        TeacherClient(address, retry=QUICK, on_retry=events.append) as client,
    ):
        with pytest.raises(MessageTooLargeError, match=r"tokenizer.json has to fit.*on the side that refused"):
            await client.register_tokenizer(large)
    assert events == []


async def test_server_without_registration_is_not_implemented() -> None:
    teacher = ScriptedTeacher(registration_script=[Abort(code=grpc.StatusCode.UNIMPLEMENTED, message="later")])
    async with serving(teacher) as address, TeacherClient(address) as client:
        with pytest.raises(NotImplementedByServerError, match="later"):
            await client.register_tokenizer(TOKENIZER)


async def test_registering_waits_for_a_server_that_is_away() -> None:
    teacher = ScriptedTeacher(registration_script=[GONE, GONE])
    async with serving(teacher) as address, TeacherClient(address, retry=QUICK) as client:
        await client.register_tokenizer(TOKENIZER)
    assert len(teacher.registrations) == 4


async def test_score_hands_a_lost_tokenizer_over_again_and_says_so() -> None:
    teacher = ScriptedTeacher(is_strict=True)
    events: list[RetryEvent] = []
    async with serving(teacher) as address, TeacherClient(address, on_retry=events.append) as client:
        registered = (await client.register_tokenizer(TOKENIZER, end_token_ids=[7])).tokenizer_id
        teacher.known.clear()
        scores = await score(client, registered)
    assert scores.tokenizer_id == registered
    assert len(teacher.requests) == 2
    assert teacher.requests[0] == teacher.requests[1]
    assert teacher.registrations[:2] == teacher.registrations[2:]
    assert [(event.attempt, event.code, event.next_delay_seconds) for event in events] == [(1, "NOT_FOUND", 0.0)]
    assert events[0].message.endswith("the tokenizer was handed over again")


async def test_scores_at_once_share_one_renewal() -> None:
    teacher = ScriptedTeacher(is_strict=True)
    async with serving(teacher) as address, TeacherClient(address) as client:
        registered = (await client.register_tokenizer(TOKENIZER)).tokenizer_id
        teacher.known.clear()
        await asyncio.gather(*(score(client, registered) for _ in range(20)))
        assert len(teacher.registrations) == 4
        teacher.known.clear()
        await asyncio.gather(*(score(client, registered) for _ in range(20)))
    assert len(teacher.registrations) == 6


async def test_each_tokenizer_is_renewed_with_its_own_arguments() -> None:
    teacher = ScriptedTeacher(is_strict=True)
    async with serving(teacher) as address, TeacherClient(address) as client:
        first = (await client.register_tokenizer(TOKENIZER)).tokenizer_id
        await client.register_tokenizer(OTHER)
        teacher.known.clear()
        await score(client, first)
    assert [request.tokenizer_json for request in teacher.registrations[4:]] == [b"", TOKENIZER.encode()]


async def test_teacher_that_was_named_may_be_left_out_of_the_score() -> None:
    teacher = ScriptedTeacher(is_strict=True)
    async with serving(teacher) as address, TeacherClient(address) as client:
        registered = (await client.register_tokenizer(TOKENIZER, teacher="tutor")).tokenizer_id
        teacher.known.clear()
        await score(client, registered)
    assert {request.teacher for request in teacher.registrations} == {"tutor"}


async def test_id_that_was_never_handed_over_raises_at_once_with_the_fix() -> None:
    teacher = ScriptedTeacher(is_strict=True)
    async with serving(teacher) as address, TeacherClient(address) as client:
        await client.register_tokenizer(TOKENIZER)
        with pytest.raises(InvalidRequestError, match="hand it over first, with register_tokenizer") as caught:
            await score(client, "somebody else's")
    assert (caught.value.field, caught.value.reason) == ("tokenizer_id", "UNKNOWN_TOKENIZER")
    assert (len(teacher.requests), len(teacher.registrations)) == (1, 2)


async def test_another_refusal_of_a_known_id_is_not_cured() -> None:
    refusal = Abort(code=grpc.StatusCode.NOT_FOUND, message="no such teacher", reason="UNKNOWN_TEACHER")
    teacher = ScriptedTeacher([refusal])
    async with serving(teacher) as address, TeacherClient(address) as client:
        registered = (await client.register_tokenizer(TOKENIZER)).tokenizer_id
        with pytest.raises(InvalidRequestError, match="no such teacher"):
            await score(client, registered)
    assert len(teacher.registrations) == 2


async def test_renewal_under_another_id_raises() -> None:
    def rename(answer: teacher_pb2.RegisterTokenizerResponse) -> None:
        answer.tokenizer_id = "renamed"

    teacher = ScriptedTeacher(is_strict=True)
    async with serving(teacher) as address, TeacherClient(address) as client:
        registered = (await client.register_tokenizer(TOKENIZER)).tokenizer_id
        teacher.known.clear()
        teacher.registration_script = [RegistrationLie(change=lambda answer: None), RegistrationLie(change=rename)]
        with pytest.raises(CorruptAnswerError, match=f"'{registered}', and calls it 'renamed'"):
            await score(client, registered)
    assert len(teacher.requests) == 1


async def test_server_that_loses_it_each_time_is_given_up_on() -> None:
    teacher = ScriptedTeacher([UNKNOWN_TOKENIZER] * 100)
    async with serving(teacher) as address, TeacherClient(address) as client:
        registered = (await client.register_tokenizer(TOKENIZER)).tokenizer_id
        with pytest.raises(InvalidRequestError, match=f"handed over again {MAX_RENEWALS} times and lost each time"):
            await score(client, registered)
    assert len(teacher.requests) == MAX_RENEWALS + 1


async def test_renewal_has_no_more_time_than_the_score() -> None:
    teacher = ScriptedTeacher(is_strict=True)
    async with serving(teacher) as address, TeacherClient(address, retry=QUICK, timeout_seconds=60) as client:
        registered = (await client.register_tokenizer(TOKENIZER)).tokenizer_id
        teacher.known.clear()
        teacher.registration_script = [GONE] * 10_000
        async with asyncio.timeout(10):
            with pytest.raises(TeacherUnavailableError):
                await score(client, registered, timeout_seconds=0.3)


async def test_renewal_that_one_score_gave_up_is_done_by_the_next() -> None:
    teacher = ScriptedTeacher(is_strict=True)
    async with serving(teacher) as address, TeacherClient(address, retry=QUICK) as client:
        registered = (await client.register_tokenizer(TOKENIZER)).tokenizer_id
        teacher.known.clear()
        refusal = Abort(code=grpc.StatusCode.INTERNAL, message="boom")
        teacher.registration_script = [refusal]
        results = await asyncio.gather(*(score(client, registered) for _ in range(3)), return_exceptions=True)
    assert sorted(isinstance(result, GroupScores) for result in results) == [False, True, True]


def test_blocking_twin_hands_over_too() -> None:
    loop = asyncio.new_event_loop()
    teacher = ScriptedTeacher(is_strict=True)

    async def ask() -> str:
        async with serving(teacher) as address:
            return await asyncio.to_thread(_register_and_score, address)

    try:
        answered = loop.run_until_complete(ask())
    finally:
        loop.close()
    assert answered == teacher.known[tokenizer_id(TOKENIZER, None)]


def _register_and_score(address: str) -> str:
    with BlockingTeacherClient(address) as client:
        registered = client.register_tokenizer(TOKENIZER, end_token_ids=[7])
        return client.score(StudentIds([1]), [[2]], top_k=2, tokenizer_id=registered.tokenizer_id).tokenizer_id
