from __future__ import annotations

import asyncio
from dataclasses import replace

import numpy as np
import pytest
from preceptor_server.callers import Caller
from preceptor_server.calls import AskedResponse, ScoreCall, TeacherIds, Text
from preceptor_server.edges.http.recorder import PREVIEW_CHARACTERS, Recorder
from preceptor_server.observability.observer import OK
from preceptor_server.serving import Notes, ServedOutcome
from preceptor_server.teachers import Teachers
from preceptor_server.tenants.tenant import Tenant

from tests.unit.server.edges.http.asking import asking, group, problem, tiny_teacher
from tests.unit.server.scored_calls import columns_of, scored_call

CALLER = Caller(tenant=Tenant(name="team"), name="trainer", transport="grpc")


def outcome(
    name: str, *, logprobs: tuple[float, ...] = (-1.0, -2.0), reason: str = OK, notes: Notes | None = None
) -> ServedOutcome:
    response = AskedResponse(ids_T=np.array([1]), score_mask_T=np.array([True]))
    return ServedOutcome(
        caller=CALLER,
        teacher="professor",
        call=ScoreCall(
            request_id=name, prompt=Text(text=f"prompt of {name}"), responses=(response,), top_k=5, temperature=1.5
        ),
        scored=scored_call(columns_of(logprobs)) if reason == OK else None,
        num_positions=len(logprobs) if reason == OK else 0,
        notes=notes or Notes(),
        reason=reason,
        total_seconds=0.25,
    )


def names(recorder: Recorder, after: int = 0, limit: int = 100) -> list[str]:
    return [record.request_id for record in recorder.after(after, limit=limit)]


def test_a_record_says_what_was_asked_and_what_came_of_it() -> None:
    recorder = Recorder(max_records=5, max_bytes=1 << 20)
    recorder.ended(outcome("first"))
    [record] = recorder.after(0, limit=10)
    assert (record.number, record.transport, record.caller, record.request_id) == (1, "grpc", "trainer", "first")
    assert (record.tokenizer_id, record.top_k, record.temperature, record.total_ms) == ("student", 5, 1.5, 250.0)
    assert (record.num_prompt_tokens, record.num_responses, record.num_positions) == (2, 1, 2)
    assert (record.outcome, record.mean_sampled_logprob, record.preview) == ("ok", -1.5, "prompt of first")


def test_nothing_is_kept_unless_it_was_asked_for() -> None:
    recorder = Recorder(max_records=0, max_bytes=1 << 20)
    recorder.ended(outcome("first"))
    assert (names(recorder), recorder.last, recorder.num_bytes, recorder.is_recording) == ([], 0, 0, False)


def test_the_oldest_make_room_by_number() -> None:
    recorder = Recorder(max_records=2, max_bytes=1 << 20)
    for name in "abc":
        recorder.ended(outcome(name))
    assert (names(recorder), recorder.last) == (["b", "c"], 3)
    assert recorder.find(1) is None
    kept = recorder.find(3)
    assert kept is not None
    assert kept.record.request_id == "c"


def test_the_oldest_make_room_by_bytes() -> None:
    recorder = Recorder(max_records=100, max_bytes=20_000)
    for index in range(50):
        recorder.ended(outcome(str(index), logprobs=(-1.0,) * 500))
        assert recorder.num_bytes <= 20_000
    kept = names(recorder)
    assert kept == [str(index) for index in range(50 - len(kept), 50)]
    assert 1 <= len(kept) <= 4  # 12,500 bytes of columns at most, and what a record takes besides


def test_one_that_is_larger_than_all_the_room_is_listed_without_its_scores() -> None:
    recorder = Recorder(max_records=100, max_bytes=3_000)
    recorder.ended(outcome("large", logprobs=(-1.0,) * 5000))
    kept = recorder.find(1)
    assert kept is not None
    assert (kept.scored, kept.record.num_positions, names(recorder)) == (None, 5000, ["large"])


def test_the_students_logprobs_count_too() -> None:
    recorder = Recorder(max_records=100, max_bytes=1 << 20)
    recorder.ended(outcome("without"))
    without = recorder.num_bytes
    recorder.ended(outcome("without", notes=Notes(student_logprobs=((-1.0,) * 100,))))
    assert recorder.num_bytes - 2 * without >= 800


def test_a_failed_one_is_listed_with_its_reason() -> None:
    recorder = Recorder(max_records=5, max_bytes=1 << 20)
    recorder.ended(outcome("bad", reason="TOKEN_OUT_OF_RANGE"))
    [record] = recorder.after(0, limit=10)
    assert (record.outcome, record.mean_sampled_logprob, record.num_positions) == ("TOKEN_OUT_OF_RANGE", None, 0)


@pytest.mark.parametrize("logprobs", [(), (-1.0, -np.inf)])
def test_a_mean_that_is_no_number_is_none(logprobs: tuple[float, ...]) -> None:
    recorder = Recorder(max_records=5, max_bytes=1 << 20)
    recorder.ended(outcome("a", logprobs=logprobs))
    assert recorder.after(0, limit=1)[0].mean_sampled_logprob is None


def test_pages_go_on_where_the_one_before_ended() -> None:
    recorder = Recorder(max_records=10, max_bytes=1 << 20)
    for name in "abcde":
        recorder.ended(outcome(name))
    assert (names(recorder, 0, 2), names(recorder, 2, 2), names(recorder, 4, 2)) == (["a", "b"], ["c", "d"], ["e"])


def test_a_long_prompt_is_shown_by_its_beginning() -> None:
    recorder = Recorder(max_records=5, max_bytes=1 << 20)
    sent = outcome("a")
    recorder.ended(replace(sent, call=replace(sent.call, prompt=Text(text="x" * 10_000))))
    assert recorder.after(0, limit=1)[0].preview == "x" * PREVIEW_CHARACTERS


def test_a_prompt_of_ids_is_shown_as_the_teacher_reads_it_and_characters_are_whole() -> None:
    recorder, teacher = Recorder(max_records=5, max_bytes=1 << 20), tiny_teacher()
    recorder.teachers = Teachers([teacher])
    assert teacher.tokenizer is not None
    ids = teacher.tokenizer.encode("<|im_start|>né", add_special_tokens=False, field="")
    sent = outcome("a")
    assert sent.scored is not None
    call, scored = replace(sent.call, prompt=TeacherIds(ids_P=ids)), replace(sent.scored, prompt_ids_P=ids)
    recorder.ended(replace(sent, call=call, scored=scored))
    assert recorder.after(0, limit=1)[0].preview == "<|im_start|>né"


async def test_who_waits_is_woken_by_the_next_one() -> None:
    recorder = Recorder(max_records=5, max_bytes=1 << 20)
    waiting = asyncio.create_task(recorder.wait_for_one_after(0, timeout_seconds=30))
    await asyncio.sleep(0)
    assert not waiting.done()
    recorder.ended(outcome("a"))
    await asyncio.wait_for(waiting, 5)


async def test_who_waits_is_let_go_when_the_server_drains() -> None:
    recorder = Recorder(max_records=5, max_bytes=1 << 20)
    waiting = asyncio.create_task(recorder.wait_for_one_after(0, timeout_seconds=30))
    await asyncio.sleep(0)
    recorder.close()
    await asyncio.wait_for(waiting, 5)


async def test_a_recorded_group_is_answered_as_it_was() -> None:
    async with asking(record=3) as asked:
        body = group(responses=[{"ids": [6, 7], "student_logprobs": [-0.5, -0.25], "candidate_ids": [[8], [9]]}])
        answer = (await asked.topk(body)).json()
        assert (await asked.client.get("/v1/requests/1")).json() == answer
        following = (await asked.topk({"prompt": {"text": "a"}})).json()
        assert (await asked.client.get("/v1/requests/2")).json() == following
        listed = (await asked.client.get("/v1/requests", params={"after": 1})).json()
        assert [record["number"] for record in listed["records"]] == [2]
        assert (listed["last"], listed["is_recording"]) == (2, True)


async def test_a_failed_group_is_listed_and_has_no_scores() -> None:
    async with asking(record=3) as asked:
        await asked.topk(group(prompt={"teacher_ids": [999]}))
        [record] = (await asked.client.get("/v1/requests")).json()["records"]
        assert record["outcome"] == "TOKEN_OUT_OF_RANGE"
        answer = await asked.client.get("/v1/requests/1")
        assert problem(answer) == (404, "NO_SCORES", "number")
        assert "TOKEN_OUT_OF_RANGE" in answer.json()["detail"]
        assert problem(await asked.client.get("/v1/requests/2")) == (404, "NOT_RECORDED", "number")


async def test_off_by_default() -> None:
    async with asking() as asked:
        await asked.topk(group())
        answer = await asked.client.get("/v1/requests", params={"wait_seconds": 30})
        assert answer.json() == {"records": [], "last": 0, "is_recording": False}
