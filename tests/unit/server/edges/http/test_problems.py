"""Everything that a caller can do wrong, and what it is told: status, reason, and the field as its body calls it."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import grpc
import httpx
import pytest
from preceptor_server.config import LimitsConfig
from preceptor_server.edges.failures import CODE_BY_ERROR
from preceptor_server.edges.http.app import build_app
from preceptor_server.edges.http.problems import STATUS_BY_CODE, body_field
from preceptor_server.errors import DeadlinePassedError, EngineDiedError, EngineFailedError, QueueFullError, ServerError
from preceptor_server.scheduling.scheduler import Scheduler
from preceptor_server.tenants.tenant import Tenant
from starlette.types import Message

from tests.unit.server.edges.http.asking import URL, Asked, Body, asking, group, problem, tiny_teacher
from tests.unit.server.hosting import hosted_teacher

JSON = {"content-type": "application/json"}


def test_every_code_that_the_server_gives_has_a_status() -> None:
    assert {*CODE_BY_ERROR.values(), grpc.StatusCode.INTERNAL} <= set(STATUS_BY_CODE)


@pytest.mark.parametrize(
    ("wire", "body"),
    [
        ("prompt.text.text", "prompt.text"),
        ("prompt.text", "prompt.text"),
        ("prompt.chat.messages", "prompt.messages"),
        ("prompt.chat", "prompt.messages"),
        ("prompt.chat.tools[3]", "prompt.tools[3]"),
        ("prompt.chat.template_arguments", "prompt.chat_template_kwargs"),
        ("prompt.chat.messages[2].tool_calls", "prompt.messages[2].tool_calls"),
        ("prompt.chat.messages[2].tool_calls[1].arguments", "prompt.messages[2].tool_calls[1].function.arguments"),
        ("prompt.chat.messages[2].tool_calls[1].name", "prompt.messages[2].tool_calls[1].function.name"),
        ("prompt.teacher_ids", "prompt.teacher_ids"),
        ("responses[12].candidates.ids", "responses[12].candidate_ids"),
        ("responses[12].candidates.num_per_position", "responses[12].candidate_ids"),
        ("responses[12].candidates", "responses[12].candidate_ids"),
        ("responses[1].ids", "responses[1].text"),
        ("responses[10].ids", "responses[10].ids"),
        ("tokenizer_id", "tokenizer"),
        ("top_k", "top_k"),
        ("", ""),
    ],
)
def test_fields_have_the_names_of_the_body(wire: str, body: str) -> None:
    assert body_field(wire, {"responses[1].ids": "responses[1].text"}) == body


def nested(depth: int) -> str:
    return '{"prompt": ' + "[" * depth + "]" * depth + "}"


RAW = [
    pytest.param("", "MALFORMED_JSON", None, id="no body"),
    pytest.param("{", "MALFORMED_JSON", None, id="torn"),
    pytest.param("\ufeff{}", "MALFORMED_JSON", None, id="byte order mark"),
    pytest.param('{"prompt": {"text": "\\ud800"}}', "MALFORMED_JSON", None, id="half a surrogate pair"),
    pytest.param(nested(100_000), "MALFORMED_JSON", None, id="nested deeply"),
    pytest.param("[]", "INVALID_FIELD", None, id="a list"),
    pytest.param("null", "INVALID_FIELD", None, id="null"),
    pytest.param('{"prompt": {"text": "a"}, "temperature": NaN}', "INVALID_FIELD", "temperature", id="NaN"),
    pytest.param('{"prompt": {"text": "a"}, "temperature": Infinity}', "INVALID_FIELD", "temperature", id="infinity"),
    pytest.param('{"prompt": {"text": "a"}, "temperature": 1e999}', "INVALID_FIELD", "temperature", id="too large"),
]


@pytest.mark.parametrize(("content", "reason", "field"), RAW)
async def test_a_body_that_is_no_object_of_json_is_400(content: str, reason: str, field: str | None) -> None:
    async with asking() as asked:
        for path in ("/v1/topk", "/v1/align"):
            answer = await asked.client.post(path, content=content.encode(), headers=JSON)
            status, seen_reason, seen_field = problem(answer)
            assert (status, seen_reason) == (400, reason)
            if path == "/v1/topk":
                assert seen_field == field


TEXT = {"text": "ab"}
MISTAKES: list[Any] = [
    pytest.param({"prompt": None}, 400, "INVALID_FIELD", "prompt", id="no prompt"),
    pytest.param({"prompt": {}}, 400, "INVALID_FIELD", "prompt", id="empty prompt"),
    pytest.param({"prompt": TEXT | {"teacher_ids": [1]}}, 400, "INVALID_FIELD", "prompt", id="two prompts"),
    pytest.param(
        {"prompt": {"teacher_ids": [1], "omit_special_tokens": True}}, 400, "INVALID_FIELD", "prompt", id="omit of ids"
    ),
    pytest.param({"prompt": {"text": ""}}, 400, "INVALID_FIELD", "prompt.text", id="empty text"),
    pytest.param({"prompt": {"messages": []}}, 400, "INVALID_FIELD", "prompt.messages", id="no messages"),
    pytest.param(
        {"prompt": {"messages": [{"role": "user"}]}},
        400,
        "INVALID_FIELD",
        "prompt.messages[0].content",
        id="message without content",
    ),
    pytest.param({"prompt": {"teacher_ids": [1, -1]}}, 400, "INVALID_FIELD", "prompt.teacher_ids[1]", id="id below 0"),
    pytest.param({"prompt": {"teacher_ids": [2**32]}}, 400, "INVALID_FIELD", "prompt.teacher_ids[0]", id="33 bits"),
    pytest.param({"prompt": {"teacher_ids": [1.5]}}, 400, "INVALID_FIELD", "prompt.teacher_ids[0]", id="half an id"),
    pytest.param({"prompt": {"teacher_ids": ["1"]}}, 400, "INVALID_FIELD", "prompt.teacher_ids[0]", id="id as text"),
    pytest.param({"prompt": {"teacher_ids": [True]}}, 400, "INVALID_FIELD", "prompt.teacher_ids[0]", id="id as bool"),
    pytest.param({"prompt": {"teacher_ids": [259]}}, 400, "TOKEN_OUT_OF_RANGE", "prompt.teacher_ids", id="id outside"),
    pytest.param(
        {"prompt": {"student_ids": [259]}}, 400, "TOKEN_OUT_OF_RANGE", "prompt.student_ids", id="student id outside"
    ),
    pytest.param({"prompt": {"teacher_ids": [3] * 63}}, 400, "BEYOND_CONTEXT", "responses[0].ids", id="beyond context"),
    pytest.param({"responses": [{}]}, 400, "INVALID_FIELD", "responses[0]", id="empty response"),
    pytest.param({"responses": [TEXT | {"ids": [1]}]}, 400, "INVALID_FIELD", "responses[0]", id="text and ids"),
    pytest.param({"responses": [{"ids": []}]}, 400, "INVALID_FIELD", "responses[0].ids", id="no ids"),
    pytest.param({"responses": [{"text": ""}]}, 400, "INVALID_FIELD", "responses[0].text", id="no text"),
    pytest.param(
        {"responses": [{"ids": [6]}, {"ids": [300]}]},
        400,
        "TOKEN_OUT_OF_RANGE",
        "responses[1].ids",
        id="second outside",
    ),
    pytest.param(
        {"responses": [{"text": "a" * 64}]}, 400, "BEYOND_CONTEXT", "responses[0].text", id="text beyond context"
    ),
    pytest.param(
        {"responses": [{"ids": [6, 7], "score_mask": [True]}]},
        400,
        "MALFORMED_COLUMN",
        "responses[0].score_mask",
        id="short mask",
    ),
    pytest.param(
        {"responses": [{"ids": [6]}, {"ids": [6], "score_mask": [False]}]},
        400,
        "INVALID_FIELD",
        "responses[1].score_mask",
        id="mask of nothing",
    ),
    pytest.param(
        {"responses": [{"ids": [6, 7], "candidate_ids": [[1]]}]},
        400,
        "INVALID_FIELD",
        "responses[0].candidate_ids",
        id="candidates too few",
    ),
    pytest.param(
        {"responses": [{"ids": [6, 7], "candidate_ids": [[1], [1, 2]]}]},
        400,
        "INVALID_FIELD",
        "responses[0].candidate_ids",
        id="candidates ragged",
    ),
    pytest.param(
        {"responses": [{"ids": [6], "candidate_ids": [[259]]}]},
        400,
        "TOKEN_OUT_OF_RANGE",
        "responses[0].candidate_ids",
        id="candidate outside",
    ),
    pytest.param(
        {"responses": [{"ids": [6], "candidate_ids": [[]]}]},
        400,
        "INVALID_FIELD",
        "responses[0].candidate_ids[0]",
        id="no candidates",
    ),
    pytest.param(
        {"responses": [{"ids": [6], "candidate_ids": [[1]]}], "segmentation": "canonical"},
        422,
        "NOT_IMPLEMENTED",
        "responses[0].candidate_ids",
        id="candidates of canonical",
    ),
    pytest.param(
        {"responses": [{"ids": [6], "student_logprobs": [-1, -2]}]},
        400,
        "INVALID_FIELD",
        "responses[0].student_logprobs",
        id="student logprobs too many",
    ),
    pytest.param({"top_k": 0}, 400, "INVALID_FIELD", "top_k", id="K 0"),
    pytest.param({"top_k": 260}, 400, "INVALID_FIELD", "top_k", id="K above the vocabulary"),
    pytest.param({"top_k": 2**40}, 400, "INVALID_FIELD", "top_k", id="K of 40 bits"),
    pytest.param({"temperature": 0}, 400, "INVALID_FIELD", "temperature", id="temperature 0"),
    pytest.param({"temperature": "1"}, 400, "INVALID_FIELD", "temperature", id="temperature as text"),
    pytest.param({"segmentation": "best"}, 400, "INVALID_FIELD", "segmentation", id="unknown policy"),
    pytest.param({"segmentation": "paper"}, 400, "INVALID_FIELD", "paper_token_ids", id="paper without ids"),
    pytest.param({"paper_token_ids": [1]}, 400, "INVALID_FIELD", "paper_token_ids", id="paper ids without paper"),
    pytest.param({"logprob_dtype": "f8"}, 400, "INVALID_FIELD", "logprob_dtype", id="unknown dtype"),
    pytest.param({"positions": "next"}, 400, "INVALID_FIELD", "positions", id="positions beside responses"),
    pytest.param({"positions": "last", "responses": []}, 400, "INVALID_FIELD", "positions", id="unknown positions"),
    pytest.param(
        {"positions": "all", "responses": [], "prompt": {"teacher_ids": [5]}},
        400,
        "INVALID_FIELD",
        "prompt",
        id="one token",
    ),
    pytest.param(
        {"positions": "all", "responses": [], "prompt": {"teacher_ids": [5, 999]}},
        400,
        "TOKEN_OUT_OF_RANGE",
        "prompt",
        id="all of ids outside",
    ),
    pytest.param(
        {"responses": [], "prompt": {"teacher_ids": [5] * 64}},
        400,
        "BEYOND_CONTEXT",
        "prompt",
        id="next beyond context",
    ),
    pytest.param({"request_id": "x" * 129}, 400, "INVALID_FIELD", "request_id", id="long request id"),
    pytest.param({"batch_invariant": 1}, 400, "INVALID_FIELD", "batch_invariant", id="bool as number"),
    pytest.param({"unknown": 1}, 400, "INVALID_FIELD", "unknown", id="unknown field"),
    pytest.param({"teacher": "nobody"}, 404, "UNKNOWN_TEACHER", "teacher", id="unknown teacher"),
    pytest.param({"adapter": "nobody"}, 404, "UNKNOWN_ADAPTER", "adapter", id="unknown adapter"),
    pytest.param({"tokenizer": "nobody"}, 404, "UNKNOWN_TOKENIZER", "tokenizer", id="unknown tokenizer"),
    pytest.param({"tokenizer": "nobody", "responses": []}, 404, "UNKNOWN_TOKENIZER", "tokenizer", id="next of unknown"),
    pytest.param(
        {"tokenizer": "nobody", "responses": [TEXT]}, 422, "NOT_IMPLEMENTED", "responses[0].text", id="text of unknown"
    ),
]


@pytest.mark.parametrize(("change", "status", "reason", "field"), MISTAKES)
async def test_a_mistake_is_told_by_field_and_the_server_keeps_serving(
    change: Body, status: int, reason: str, field: str
) -> None:
    body = {name: value for name, value in group(**change).items() if value is not None}
    async with asking() as asked:
        answer = await asked.topk(body)
        assert problem(answer) == (status, reason, field)
        assert answer.json()["detail"].startswith(field)
        assert (await asked.topk(group())).status_code == 200


async def test_several_mistakes_are_told_at_once_and_only_so_many() -> None:
    async with asking() as asked:
        told = (await asked.topk({"x" * 5000: 1, "top_k": 0, "y": 1, "z": 1})).json()
    assert told["field"] == "prompt"
    assert "top_k: " in told["detail"]
    assert told["detail"].endswith("and 2 more")
    assert len(told["detail"]) < 1000


@pytest.mark.parametrize(
    "content_type", ["text/plain", "", "application/xml", "application/jsonx", "multipart/form-data"]
)
async def test_another_content_type_is_415(content_type: str) -> None:
    async with asking() as asked:
        answer = await asked.client.post(
            "/v1/topk", content=json.dumps(group()), headers={"content-type": content_type} if content_type else {}
        )
        assert problem(answer) == (415, "UNSUPPORTED_MEDIA_TYPE", None)


async def test_a_charset_beside_the_content_type_is_fine() -> None:
    async with asking() as asked:
        headers = {"content-type": "Application/JSON; charset=utf-8"}
        answer = await asked.client.post("/v1/topk", content=json.dumps(group()), headers=headers)
        assert answer.status_code == 200


async def test_a_form_that_there_is_not_is_406_and_the_body_is_not_looked_at() -> None:
    async with asking() as asked:
        for path in ("/v1/topk", "/v1/align"):
            answer = await asked.client.post(path, content="{", headers=JSON | {"accept": "image/png"})
            assert problem(answer) == (406, "NOT_ACCEPTABLE", None)


async def test_a_body_that_is_too_large_is_413_with_its_length_or_without() -> None:
    async def chunks() -> Any:
        for _ in range(20):
            yield b" " * 100

    async with asking(max_body_bytes=1024) as asked:
        for content in (b" " * 1025, chunks()):
            answer = await asked.client.post("/v1/topk", content=content, headers=JSON)
            assert problem(answer) == (413, "BODY_TOO_LARGE", None)
        assert (await asked.topk(group())).status_code == 200


async def test_a_body_that_does_not_come_is_408() -> None:
    async def slowly() -> Any:
        yield b"{"
        await asyncio.sleep(60)

    async with asking(timeout_seconds=0.05) as asked:
        answer = await asked.client.post("/v1/topk", content=slowly(), headers=JSON)
        assert problem(answer) == (408, "BODY_TOO_SLOW", None)


async def test_bodies_that_trickle_in_take_half_of_the_room_and_stop_no_other_address() -> None:
    num_begun, may_end = 0, asyncio.Event()

    async def trickling() -> Any:
        nonlocal num_begun
        num_begun += 1
        yield b"{"
        await may_end.wait()
        yield json.dumps(group()).encode()[1:]

    async with asking(max_groups=1, max_waiting=7) as asked:
        slow = [
            asyncio.create_task(asked.client.post("/v1/topk", content=trickling(), headers=JSON)) for _ in range(20)
        ]
        elsewhere = httpx.ASGITransport(app=build_app(asked.state), client=("10.0.0.2", 1))
        async with httpx.AsyncClient(transport=elsewhere, base_url=URL) as other:
            while num_begun < 4:
                await asyncio.sleep(0)
            for _ in range(5):
                assert (await other.post("/v1/topk", json=group())).status_code == 200
        assert num_begun == 4
        may_end.set()
        # The others come to their turn, as far as the gate lets them wait for one.
        assert {(await one).status_code for one in slow} <= {200, 429}
        assert (await asked.topk(group())).status_code == 200


async def test_waiting_for_other_bodies_has_an_end() -> None:
    async with asking(max_groups=1, max_waiting=1, timeout_seconds=0.05) as asked:
        async with asked.state.bodies.slot(Tenant(name="peer:127.0.0.1")):
            assert problem(await asked.topk(group())) == (504, "DEADLINE_PASSED", None)
        assert (await asked.topk(group())).status_code == 200


async def test_a_caller_that_goes_while_it_sends_its_body_is_no_error_of_the_server(
    caplog: pytest.LogCaptureFixture,
) -> None:
    parts: list[Message] = [
        {"type": "http.request", "body": b'{"prompt"', "more_body": True},
        {"type": "http.disconnect"},
    ]
    scope = {
        "type": "http",
        "http_version": "1.1",
        "method": "POST",
        "path": "/v1/topk",
        "query_string": b"",
        "headers": [(b"host", b"127.0.0.1"), (b"content-type", b"application/json")],
        "client": ("127.0.0.1", 1),
    }
    sent: list[Message] = []

    async def receive() -> Message:
        return parts.pop(0)

    async def send(message: Message) -> None:
        sent.append(message)

    async with asking() as asked:
        await build_app(asked.state)(scope, receive, send)
    assert sent[0]["status"] == 499
    assert caplog.text == ""


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"prompt": {"text": "a" * 4097}}, "prompt.text"),
        ({"prompt": {"messages": [{"role": "user", "content": "a" * 2048}] * 2}}, "prompt.messages"),
        ({"responses": [{"text": "a"}, {"text": "a" * 4097}]}, "responses[1].text"),
    ],
)
async def test_a_text_far_beyond_the_context_is_not_even_cut(change: Body, field: str) -> None:
    async with asking() as asked:
        assert asked.teacher.tokenizer is not None
        asked.teacher.tokenizer.encode = None  # type: ignore[method-assign, assignment]  # whoever cuts fails
        answer = await asked.topk(group(**change))
        assert problem(answer) == (400, "BEYOND_CONTEXT", field)
        assert "far more than the teacher's max_model_len=64 tokens hold" in answer.json()["detail"]


@pytest.mark.parametrize(
    ("method", "path", "status", "reason"),
    [
        ("GET", "/v1/nothing", 404, "NOT_FOUND"),
        ("GET", "/static/nothing.js", 404, "NOT_FOUND"),
        ("GET", "/static/..%2fapp.py", 404, "NOT_FOUND"),
        ("GET", "/static/", 404, "NOT_FOUND"),
        ("GET", "/docs", 404, "NOT_FOUND"),
        ("GET", "/v1/topk", 405, "METHOD_NOT_ALLOWED"),
        ("DELETE", "/v1/requests", 405, "METHOD_NOT_ALLOWED"),
        ("POST", "/", 405, "METHOD_NOT_ALLOWED"),
        ("POST", "/static/index.html", 405, "METHOD_NOT_ALLOWED"),
    ],
)
async def test_paths_and_methods_that_there_are_not(method: str, path: str, status: int, reason: str) -> None:
    async with asking() as asked:
        answer = await asked.client.request(method, path)
        assert problem(answer) == (status, reason, None)
        assert (status != 405) or answer.headers["allow"]


@pytest.mark.parametrize(
    ("path", "field"),
    [
        ("/v1/requests?after=x", "after"),
        ("/v1/requests?after=-1", "after"),
        ("/v1/requests?limit=0", "limit"),
        ("/v1/requests?limit=1001", "limit"),
        ("/v1/requests?wait_seconds=31", "wait_seconds"),
        ("/v1/requests?wait_seconds=nan", "wait_seconds"),
        ("/v1/requests/x", "number"),
        ("/v1/requests/-1", "number"),
    ],
)
async def test_a_parameter_that_is_out_of_range_is_told_by_name(path: str, field: str) -> None:
    async with asking() as asked:
        assert problem(await asked.client.get(path)) == (400, "INVALID_FIELD", field)


class BrokenScheduler(Scheduler):
    """Raises instead of scoring."""

    error: Exception = RuntimeError("secret")

    async def score(self, *_: object, **__: object) -> Any:
        raise self.error


async def failing(error: Exception) -> httpx.Response:
    teacher = tiny_teacher()
    teacher.scheduler.__class__ = BrokenScheduler
    assert isinstance(teacher.scheduler, BrokenScheduler)
    teacher.scheduler.error = error
    async with asking(teacher) as asked:
        return await asked.topk(group())


@pytest.mark.parametrize(
    ("error", "status", "reason", "retry_after"),
    [
        (QueueFullError("full", retry_after_seconds=2.5), 429, "QUEUE_FULL", "3"),
        (DeadlinePassedError("late"), 504, "DEADLINE_PASSED", None),
        (EngineDiedError("dead", retry_after_seconds=0.2), 503, "ENGINE_DIED", "1"),
        (EngineFailedError("nan"), 500, "ENGINE_FAILED", None),
    ],
)
async def test_what_fails_later_has_its_status_and_says_when_to_come_back(
    error: ServerError, status: int, reason: str, retry_after: str | None
) -> None:
    answer = await failing(error)
    assert problem(answer) == (status, reason, None)
    assert answer.headers.get("retry-after") == retry_after
    assert answer.json()["retry_after_seconds"] == getattr(error, "retry_after_seconds", None)


async def test_an_error_that_nobody_foresaw_is_500_and_tells_nothing(caplog: pytest.LogCaptureFixture) -> None:
    answer = await failing(RuntimeError("secret"))
    assert problem(answer) == (500, "INTERNAL", None)
    assert "secret" not in answer.text
    assert "secret" in caplog.text


async def test_text_for_a_teacher_without_a_tokenizer_is_422() -> None:
    async with asking(hosted_teacher()) as asked:
        assert problem(await asked.topk(group(prompt=TEXT))) == (422, "NOT_IMPLEMENTED", "prompt.text")
        assert problem(await asked.topk({"prompt": TEXT, "positions": "all"})) == (422, "NOT_IMPLEMENTED", "prompt")
        answer = await asked.topk(group(responses=[TEXT]))
        assert problem(answer) == (422, "NOT_IMPLEMENTED", "responses[0].text")


async def test_an_answer_that_would_be_too_large_is_refused_before_it_is_scored() -> None:
    limits = LimitsConfig(max_message_bytes=65536)
    async with asking(tiny_teacher(limits=limits, max_model_len=4096)) as asked:
        answer = await asked.topk(group(responses=[{"ids": [6] * 1000}], top_k=64))
        assert problem(answer) == (400, "ANSWER_TOO_LARGE", "top_k")


async def described(asked: Asked) -> Body:
    description: Body = (await asked.client.get("/openapi.json")).json()
    return description


async def test_a_misspelt_field_is_told_as_one() -> None:
    async with asking() as asked:
        answer = await asked.topk({"prompt": TEXT, "topk": 4})
    assert answer.json()["detail"] == "topk: there is no such field; /openapi.json lists those that there are"


async def test_every_problem_is_described() -> None:
    async with asking() as asked:
        paths = (await described(asked))["paths"]
    assert set(paths) == {
        *("/v1/topk", "/v1/align", "/v1/info", "/v1/requests", "/v1/requests/{number}", "/v1/stats"),
        *("/healthz", "/readyz", "/metrics"),
    }
    for path, operations in paths.items():
        for operation in operations.values():
            # What this teacher cannot do. FastAPI's own use of it is for mistakes, which are 400 here.
            assert ("422" in operation["responses"]) == (path in ("/v1/topk", "/v1/align"))
            for status in operation["responses"].keys() - {"200"}:
                assert list(operation["responses"][status]["content"]) == ["application/problem+json"]
    scoring = {int(status) for status in paths["/v1/topk"]["post"]["responses"]}
    assert scoring == {200, 400, 401, 403, 404, 406, 408, 413, 415, 421, 422, 429, 500, 503, 504}
