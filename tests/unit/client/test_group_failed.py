"""What a teacher fails on is an error of its own, that says where the cause stands in the server's log."""

from __future__ import annotations

import grpc
import pytest
from preceptor_client import StudentIds, TeacherClient
from preceptor_client.errors import GroupFailedError, PreceptorError

from tests.unit.client.scripted_teacher import Abort, ScriptedTeacher, serving


@pytest.mark.parametrize("reason", ["BAD_GROUP", "ENGINE_FAILED", "GROUP_TOO_LARGE", "INTERNAL"])
async def test_failure_of_a_group_keeps_its_reason_and_what_stands_in_the_log(reason: str) -> None:
    abort = Abort(code=grpc.StatusCode.INTERNAL, message="the model raised (incident 7f3a)", reason=reason)
    teacher = ScriptedTeacher(script=[abort])
    async with serving(teacher) as address, TeacherClient(address, timeout_seconds=30) as client:
        with pytest.raises(GroupFailedError) as caught:
            await client.score(StudentIds([5]), [[6, 7]], top_k=4)
        assert caught.value.reason == reason
        assert caught.value.incident == "the model raised (incident 7f3a)"
        assert len(teacher.requests) == 1, "the same group again would fail again"
        await client.score(StudentIds([5]), [[6, 7]], top_k=4)


@pytest.mark.parametrize(
    "abort",
    [
        Abort(code=grpc.StatusCode.INTERNAL),
        Abort(code=grpc.StatusCode.INTERNAL, reason="BAD_GROUP", domain="a.proxy"),
        Abort(code=grpc.StatusCode.INTERNAL, reason="SOMETHING_ELSE"),
        Abort(code=grpc.StatusCode.UNKNOWN, reason="BAD_GROUP"),
    ],
)
async def test_what_the_server_does_not_say_of_a_group_is_no_failure_of_one(abort: Abort) -> None:
    async with serving(ScriptedTeacher(script=[abort])) as address, TeacherClient(address) as client:
        with pytest.raises(PreceptorError) as caught:
            await client.score(StudentIds([5]), [[6, 7]], top_k=4)
    assert not isinstance(caught.value, GroupFailedError)
