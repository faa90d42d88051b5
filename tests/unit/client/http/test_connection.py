from __future__ import annotations

import asyncio
import itertools
import json
import time
from collections.abc import Callable

import httpx
import pytest
from preceptor_client.errors import CorruptAnswerError, InvalidRequestError, PreceptorError, TeacherUnavailableError
from preceptor_client.http.connection import HttpTeacher
from preceptor_client.retry import RetryEvent, RetryPolicy

from tests.unit.client.http.scripted_http import STATS, Dribble, Hang, Problem, ScriptedHttp, record, serving_http

URL = "http://teacher:8080"
FAST = RetryPolicy(initial_seconds=0.001, max_seconds=0.001)
Handler = Callable[[httpx.Request], httpx.Response]


def answering(*answers: httpx.Response | Exception) -> tuple[Handler, list[httpx.Request]]:
    """Gives these answers in order, the last one for ever; what was asked is kept."""
    asked: list[httpx.Request] = []
    given = itertools.chain(answers, itertools.repeat(answers[-1]))

    def handle(request: httpx.Request) -> httpx.Response:
        asked.append(request)
        answer = next(given)
        if isinstance(answer, Exception):
            raise answer
        return httpx.Response(answer.status_code, content=answer.content)

    return handle, asked


def teacher(
    handler: Handler, *, timeout_seconds: float = 5.0, on_retry: Callable[[RetryEvent], None] | None = None
) -> HttpTeacher:
    return HttpTeacher(
        URL,
        timeout_seconds=timeout_seconds,
        retry=FAST,
        on_retry=on_retry,
        transport=httpx.MockTransport(handler),
    )


def problem(status: int, **details: object) -> httpx.Response:
    return httpx.Response(status, json=Problem(status=status, **details).to_json())  # type: ignore[arg-type]  # a test's


async def test_stats_are_read_field_by_field() -> None:
    handler, asked = answering(httpx.Response(200, json=STATS))
    async with teacher(handler) as server:
        stats = await server.stats()
    assert str(asked[0].url) == f"{URL}/v1/stats"
    assert (stats.is_serving, stats.queue_groups, stats.positions_per_second) == (True, 3, 512.25)


async def test_records_are_asked_for_by_number_and_may_have_fields_that_are_new() -> None:
    body = {"records": [record(7, colour="blue"), record(8)], "last": 8, "is_recording": True, "version": 2}
    handler, asked = answering(httpx.Response(200, json=body))
    async with teacher(handler) as server:
        page = await server.requests(after=6, limit=2, wait_seconds=20)
    assert dict(asked[0].url.params) == {"after": "6", "limit": "2", "wait_seconds": "20"}
    assert [one.number for one in page.records] == [7, 8]
    assert (page.records[0].mean_sampled_logprob, page.last, page.is_recording) == (-0.8125, 8, True)


async def test_a_server_that_was_away_is_asked_what_it_has_and_not_to_wait() -> None:
    body = {"records": [], "last": 0, "is_recording": True}
    handler, asked = answering(httpx.ReadError("reset"), httpx.Response(200, json=body))
    async with teacher(handler) as server:
        await server.requests(after=6, limit=2, wait_seconds=20)
    assert [dict(one.url.params) for one in asked] == [
        {"after": "6", "limit": "2", "wait_seconds": "20"},
        {"after": "6", "limit": "2"},
    ]


async def test_a_path_of_the_url_is_kept() -> None:
    handler, asked = answering(httpx.Response(200, json=STATS))
    async with HttpTeacher(f"{URL}/big/", timeout_seconds=1.0, transport=httpx.MockTransport(handler)) as server:
        await server.stats()
    assert str(asked[0].url) == f"{URL}/big/v1/stats"


async def test_what_may_pass_is_asked_again_and_told() -> None:
    handler, asked = answering(
        httpx.ConnectError("refused"),
        problem(503, detail="starting", reason="NOT_SERVING"),
        problem(429, detail="full", reason="QUEUE_FULL", retry_after_seconds=0.01),
        httpx.Response(200, json=STATS),
    )
    events: list[RetryEvent] = []
    async with teacher(handler, on_retry=events.append) as server:
        assert (await server.stats()).queue_groups == 3
    assert len(asked) == 4
    assert [(event.attempt, event.code) for event in events] == [(1, ""), (2, "503"), (3, "429")]
    assert events[0].message == "no answer (refused)"
    assert events[1].message == "503 Service Unavailable: starting"
    assert events[2].next_delay_seconds >= 0.01


@pytest.mark.parametrize("status", [400, 404, 409, 413, 422, 500, 501, 504])
async def test_what_asking_again_cannot_mend_is_asked_once(status: int) -> None:
    handler, asked = answering(problem(status, reason="REASON", field="top_k"))
    async with teacher(handler) as server:
        with pytest.raises(PreceptorError, match=f"{status} "):
            await server.topk({})
    assert len(asked) == 1


async def test_a_callers_mistake_names_field_and_reason() -> None:
    handler, _ = answering(problem(400, detail="top_k: too many", reason="INVALID_ARGUMENT", field="top_k"))
    async with teacher(handler) as server:
        with pytest.raises(InvalidRequestError, match="too many") as raised:
            await server.topk({"top_k": 5000})
    assert (raised.value.field, raised.value.reason) == ("top_k", "INVALID_ARGUMENT")


async def test_a_server_that_stays_away_is_given_up_at_the_deadline() -> None:
    handler, asked = answering(httpx.ConnectError("refused"))
    async with teacher(handler, timeout_seconds=0.1) as server:
        with pytest.raises(TeacherUnavailableError, match=r"at most 0\.1 s, \d+ attempt\(s\).*no answer \(refused\)"):
            await server.stats()
    assert len(asked) > 1


@pytest.mark.parametrize("step", [Hang(seconds=1.0), Dribble()])
async def test_a_server_that_does_not_come_to_an_end_is_given_up_at_the_deadline(step: Hang | Dribble) -> None:
    started = time.monotonic()
    with serving_http(ScriptedHttp(script=[step])) as url:
        async with HttpTeacher(url, timeout_seconds=0.2) as server:
            with pytest.raises(TeacherUnavailableError, match=r"no answer in 0\.2 s"):
                await server.stats()
    assert time.monotonic() - started < 1.0


async def test_waiting_for_a_record_is_not_counted_against_the_deadline() -> None:
    async def later(request: httpx.Request) -> httpx.Response:
        await asyncio.sleep(0.2)
        return httpx.Response(200, json={"records": [], "last": 0, "is_recording": True})

    async with HttpTeacher(URL, timeout_seconds=0.1, transport=httpx.MockTransport(later)) as server:
        assert (await server.requests(after=0, limit=1, wait_seconds=1.0)).records == ()


@pytest.mark.parametrize(
    ("content", "where"),
    [
        (b"<html>hello</html>", "Invalid JSON"),
        (b"{}", "uptime_seconds Field required"),
        (json.dumps({**STATS, "queue_groups": "many"}).encode(), "queue_groups Input should be a valid integer"),
    ],
)
async def test_an_answer_of_another_shape_says_what_is_wrong_with_it(content: bytes, where: str) -> None:
    handler, asked = answering(httpx.Response(200, content=content))
    async with teacher(handler) as server:
        with pytest.raises(CorruptAnswerError, match=f"/v1/stats answered something else.*{where}"):
            await server.stats()
    assert len(asked) == 1


async def test_a_redirect_is_not_followed() -> None:
    handler, asked = answering(httpx.Response(302, headers={"location": "http://elsewhere/"}))
    async with teacher(handler) as server:
        with pytest.raises(PreceptorError, match="302 Found"):
            await server.stats()
    assert len(asked) == 1
