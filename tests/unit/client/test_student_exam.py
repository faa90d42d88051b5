"""A student's tokenizer at a teacher: taken, refused, not supported; and what one sentence is worth."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace

import grpc
import numpy as np
import pytest
from preceptor.fingerprint import tokenizer_id, vocabulary_id
from preceptor.v1 import teacher_pb2
from preceptor.wire import PositionStatus
from preceptor_client import TeacherClient
from preceptor_client.commands import student_exam
from preceptor_client.commands.checks import Outcome
from preceptor_client.commands.student_exam import StudentExam
from preceptor_client.commands.student_tokenizer import StudentTokenizer

from tests.unit.client.scripted_teacher import Abort, Lie, ScriptedTeacher, serving

TOKENIZER = json.dumps({"model": {"vocab": {"a": 0, "b": 1}, "merges": []}, "added_tokens": []})
OTHER_MERGES = json.dumps({"model": {"vocab": {"a": 0, "b": 1}, "merges": ["a b"]}, "added_tokens": []})
OTHER_VOCABULARY = json.dumps({"model": {"vocab": {"b": 0, "a": 1}, "merges": []}, "added_tokens": []})
PROBE = tuple(range(10, 22))
STUDENT = StudentTokenizer(
    tokenizer_json=TOKENIZER, chat_template="template", end_token_ids=(7,), vocabulary_size=90, probe_ids=PROBE
)
UNIMPLEMENTED = Abort(code=grpc.StatusCode.UNIMPLEMENTED, message="later")
REFUSED = Abort(code=grpc.StatusCode.INVALID_ARGUMENT, message="tokenizer_json: no merges", reason="INVALID_TOKENIZER")


async def examine(teacher: ScriptedTeacher, student: StudentTokenizer = STUDENT) -> StudentExam:
    async with serving(teacher) as address, TeacherClient(address) as client:
        info = (await client.info()).teachers[0]
        return await student_exam.examine_student(
            client, student=student, teacher=info, teacher_end_token_ids=(), special_pairs={}, top_k=4
        )


def without(status: PositionStatus, *, num_last: int) -> Callable[[teacher_pb2.ScoreResponse], None]:
    """The last positions come without a score."""

    def change(answer: teacher_pb2.ScoreResponse) -> None:
        scores = answer.responses[0]
        T = len(scores.status)
        scores.status = scores.status[: T - num_last] + bytes([status]) * num_last
        for name in ("support_ids", "support_logprobs", "sampled_logprobs", "log_tail_mass", "entropies"):
            data = getattr(scores, name)
            setattr(scores, name, data[: len(data) // T * (T - num_last)])

    return change


async def test_sentence_is_scored_through_the_registered_id_with_the_servers_policy() -> None:
    teacher = ScriptedTeacher(is_strict=True)
    found = await examine(teacher)
    sent = teacher.requests[0]
    assert sent.tokenizer_id == teacher.known[tokenizer_id(TOKENIZER, "template")]
    assert sent.segmentation == teacher_pb2.SEGMENTATION_POLICY_UNSPECIFIED
    assert np.frombuffer(sent.prompt.student_ids.data, "<u2").tolist() == [10, 11, 12, 13]
    assert np.frombuffer(sent.responses[0].ids.data, "<u2").tolist() == list(PROBE[4:])
    assert found.probe is not None
    mass = float(np.exp(found.probe.responses[0].support_logprobs_NK).sum(axis=1).mean())
    check = found.checks[-1]
    assert (check.name, check.outcome) == ("student probe", Outcome.OK)
    assert f"100% of 8 positions scored, {mass:.1%} of the teacher's mass in the top 4" in check.found


@pytest.mark.parametrize(("num_last", "outcome"), [(2, Outcome.OK), (3, Outcome.WARN), (8, Outcome.FAIL)])
async def test_share_of_scored_positions_decides(num_last: int, outcome: Outcome) -> None:
    change = without(PositionStatus.MISALIGNED, num_last=num_last)
    found = await examine(ScriptedTeacher([Lie(change=change)]))
    assert found.checks[-1].outcome is outcome
    assert found.checks[-1].found.endswith(f"\n{num_last} x no score: the teacher would cut these bytes differently")
    assert found.probe is not None
    positions = student_exam.probe_as_plain(found.probe)["positions"]
    assert positions == {"misaligned": num_last} | ({"ok": 8 - num_last} if num_last < 8 else {})


async def test_tokenizer_that_the_server_refuses_fails_with_its_words() -> None:
    found = await examine(ScriptedTeacher(registration_script=[REFUSED]))
    assert [(check.name, check.outcome) for check in found.checks] == [("tokenizer", Outcome.FAIL)]
    assert "no merges" in found.checks[0].found


async def test_probe_that_fails_keeps_the_report() -> None:
    found = await examine(ScriptedTeacher([Abort(code=grpc.StatusCode.INTERNAL, message="boom")]))
    assert found.report is not None
    assert (found.checks[-1].outcome, found.probe) == (Outcome.FAIL, None)
    assert "boom" in found.checks[-1].found


async def test_server_that_aligns_nothing_is_compared_by_hash() -> None:
    for teacher in (ScriptedTeacher(registration_script=[UNIMPLEMENTED]), ScriptedTeacher(has_other_tokenizers=False)):
        found = await examine(teacher)
        assert [check.outcome for check in found.checks] == [Outcome.FAIL]
        assert "takes its own tokenizer only" in found.checks[0].found
        assert teacher.requests == []


@pytest.mark.parametrize(
    ("tokenizer_json", "template", "outcome", "says"),
    [
        (TOKENIZER, "template", Outcome.OK, "identical"),
        (TOKENIZER, "another", Outcome.FAIL, "the vocabulary is the same"),
        (OTHER_MERGES, "template", Outcome.FAIL, "the vocabulary is the same"),
        (OTHER_VOCABULARY, "template", Outcome.FAIL, "in its vocabulary"),
    ],
)
async def test_hashes_tell_what_differs(tokenizer_json: str, template: str, outcome: Outcome, says: str) -> None:
    async with serving(ScriptedTeacher()) as address, TeacherClient(address) as client:
        info = (await client.info()).teachers[0]
    own = tokenizer_id(TOKENIZER, "template")
    info = replace(info, tokenizer_id=own, vocabulary_id=vocabulary_id(TOKENIZER))
    student = replace(STUDENT, tokenizer_json=tokenizer_json, chat_template=template)
    check = student_exam.check_own_tokenizer(info, student=student)
    assert check.outcome is outcome
    assert says in check.found


async def test_tokenizer_that_makes_too_little_of_the_sentence_skips_the_probe() -> None:
    teacher = ScriptedTeacher()
    found = await examine(teacher, replace(STUDENT, probe_ids=(5, 6)))
    assert (found.checks[-1].outcome, teacher.requests) == (Outcome.SKIPPED, [])
