"""What `update_weights` sends, returns and repeats, and the command that calls it."""

from __future__ import annotations

import asyncio
import inspect
import re

import grpc
import pytest
from preceptor_client import BlockingTeacherClient, PreceptorError, RetryPolicy, TeacherClient, WeightUpdate
from preceptor_client.commands import weights
from preceptor_client.errors import CorruptAnswerError, InvalidRequestError, TeacherUnavailableError
from preceptor_client.retry import RetryEvent

from tests.unit.client.scripted_teacher import Abort, Hang, ScriptedTeacher, UpdateLie, serving
from tests.unit.client.test_blocking import served_elsewhere

QUICK = RetryPolicy(initial_seconds=0.001, max_seconds=0.01)
GONE = Abort(code=grpc.StatusCode.UNAVAILABLE, message="starting")
REFUSED = Abort(
    code=grpc.StatusCode.FAILED_PRECONDITION, message="path: too heavy", reason="WEIGHT_UPDATE_FAILED", field="path"
)


async def test_update_names_what_it_is_for_and_tells_both_revisions() -> None:
    teacher = ScriptedTeacher()
    async with serving(teacher) as address, TeacherClient(address) as client:
        own = await client.update_weights("step-1", teacher="tutor")
        adapter = await client.update_weights("law-1", adapter="law")
        info = (await client.info()).teachers[0]
        gone = await client.update_weights(adapter="law", unload=True)
    assert own == WeightUpdate(revision="of step-1", previous_revision="r1", paused_ms=12.5)
    assert adapter == WeightUpdate(revision="of law-1", previous_revision="", paused_ms=12.5)
    assert gone == WeightUpdate(revision="", previous_revision="of law-1", paused_ms=12.5)
    sent = [(update.teacher, update.path, update.adapter, update.unload) for update in teacher.updates]
    assert sent == [("tutor", "step-1", "", False), ("", "law-1", "law", False), ("", "", "law", True)]
    assert (info.revision, info.adapters) == ("of step-1", {"law": "of law-1"})
    assert (info.revision_of(""), info.revision_of("law")) == ("of step-1", "of law-1")
    assert info.capabilities.weight_updates
    assert info.capabilities.entropies


@pytest.mark.parametrize(
    ("path", "adapter", "unload", "field"),
    [("", "", False, "path"), ("", "", True, "adapter"), ("a", "b", True, "path")],
)
async def test_what_makes_no_sense_costs_no_round_trip(path: str, adapter: str, unload: bool, field: str) -> None:
    async with TeacherClient("127.0.0.1:1") as client:
        with pytest.raises(InvalidRequestError) as caught:
            await client.update_weights(path, adapter=adapter, unload=unload)
    assert (caught.value.field, caught.value.reason) == (field, "REFUSED_BY_CLIENT")


async def test_refusal_is_raised_at_once_with_field_and_reason() -> None:
    teacher = ScriptedTeacher(update_script=[REFUSED])
    async with serving(teacher) as address, TeacherClient(address, retry=QUICK) as client:
        with pytest.raises(InvalidRequestError, match="path: too heavy") as caught:
            await client.update_weights("step-1")
    assert (caught.value.field, caught.value.reason) == ("path", "WEIGHT_UPDATE_FAILED")
    assert len(teacher.updates) == 1


async def test_server_that_is_not_there_yet_is_asked_again() -> None:
    events: list[RetryEvent] = []
    teacher = ScriptedTeacher(update_script=[GONE, GONE])
    async with serving(teacher) as address, TeacherClient(address, retry=QUICK, on_retry=events.append) as client:
        assert (await client.update_weights("step-1")).revision == "of step-1"
    assert [event.code for event in events] == ["UNAVAILABLE", "UNAVAILABLE"]


async def test_nothing_but_an_absent_server_is_asked_again() -> None:
    full = Abort(code=grpc.StatusCode.RESOURCE_EXHAUSTED, reason="QUEUE_FULL")
    teacher = ScriptedTeacher(update_script=[full])
    async with serving(teacher) as address, TeacherClient(address, retry=QUICK) as client:
        with pytest.raises(PreceptorError):
            await client.update_weights("step-1")
    assert len(teacher.updates) == 1


async def test_attempt_is_not_cut_short_and_repeated() -> None:
    teacher = ScriptedTeacher(update_script=[Hang(seconds=0.4)])
    async with (
        serving(teacher) as address,
        TeacherClient(address, retry=QUICK, attempt_timeout_seconds=0.1) as client,
    ):
        assert (await client.update_weights("step-1")).revision == "of step-1"
    assert len(teacher.updates) == 1


async def test_update_that_takes_too_long_is_not_repeated() -> None:
    teacher = ScriptedTeacher(update_script=[Hang(seconds=5)])
    async with serving(teacher) as address, TeacherClient(address, retry=QUICK) as client:
        with pytest.raises(TeacherUnavailableError):
            await client.update_weights("step-1", timeout_seconds=0.2)
    assert len(teacher.updates) == 1


@pytest.mark.parametrize("unload", [False, True])
async def test_answer_that_does_not_say_what_serves_is_refused(unload: bool) -> None:
    lie = UpdateLie(change=lambda answer: setattr(answer, "revision", "r9" if unload else ""))
    teacher = ScriptedTeacher(update_script=[lie], adapters={"law": "1"})
    async with serving(teacher) as address, TeacherClient(address) as client:
        with pytest.raises(CorruptAnswerError, match="cannot be known what serves"):
            await client.update_weights("" if unload else "step-1", adapter="law", unload=unload)


def test_blocking_client_updates_too_with_the_same_arguments() -> None:
    with served_elsewhere(ScriptedTeacher()) as address, BlockingTeacherClient(address) as client:
        assert client.update_weights("step-1").revision == "of step-1"
    signatures = [inspect.signature(kind.update_weights) for kind in (TeacherClient, BlockingTeacherClient)]
    assert signatures[0] == signatures[1]


async def run(teacher: ScriptedTeacher, *arguments: str) -> int:
    async with serving(teacher) as address:
        return await asyncio.to_thread(weights.run, ["--address", address, *arguments])


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--path", "step-1"], "teacher: revision of step-1, before it r1; scoring stood still for 12 ms"),
        (["--path", "a", "--adapter", "[new]"], "adapter [new]: revision of a, which is new; scoring stood still"),
        (["--path", "a", "--adapter", "law"], "adapter law: revision of a, before it r-law; scoring stood still"),
        (["--adapter", "law", "--unload"], "adapter law: revision r-law was taken away"),
    ],
)
async def test_command_says_what_serves_now(
    arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert await run(ScriptedTeacher(adapters={"law": "r-law"}), *arguments) == 0
    assert capsys.readouterr().out.startswith(says)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "give --path, or --unload with --adapter"),
        (["--unload"], "name it with --adapter"),
        (["--unload", "--adapter", "law", "--path", "a"], "leave it out with --unload"),
    ],
)
def test_command_that_says_too_little_or_too_much_is_refused(
    arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert weights.run(["--address", "127.0.0.1:1", *arguments]) == 2
    assert says in capsys.readouterr().err


async def test_command_fails_with_what_the_server_says(capsys: pytest.CaptureFixture[str]) -> None:
    assert await run(ScriptedTeacher(update_script=[REFUSED]), "--path", "step-1") == 1
    assert re.search(r"preceptor weights: teacher .*path: too heavy", capsys.readouterr().err)
