"""What can be looked at, the page's files, and callers that go away."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import Any

import httpx
import pytest
from preceptor_server.callers import Caller
from preceptor_server.config import SchedulerConfig
from preceptor_server.edges.http.answers import StatsAnswer
from preceptor_server.edges.http.answers_about import InfoAnswer
from preceptor_server.edges.http.app import STATIC, build_app
from preceptor_server.edges.http.config import HttpConfig
from preceptor_server.edges.http.state import HttpState
from preceptor_server.hosted import HostedTeacher
from preceptor_server.observability.observer import Asker, Observers
from preceptor_server.scheduling.scheduler import Scheduler
from preceptor_server.serving import ScoreService
from preceptor_server.teachers import Teachers
from preceptor_server.tenants.tenant import Tenant
from preceptor_server.types import GroupColumns, ScoreGroup
from starlette.types import Message

from tests.engines.fake import FakeEngine
from tests.tiny import tiny_tokenizer
from tests.unit.server.edges.http.asking import asking, group, problem, tiny_teacher


async def test_before_the_model_is_loaded_it_lives_and_says_so() -> None:
    async with asking(hosts=False) as asked:
        assert (await asked.client.get("/healthz")).json() == {"status": "alive"}
        assert problem(await asked.client.get("/readyz")) == (503, "NOT_SERVING", None)
        answers = [await asked.client.get(path) for path in ("/v1/info", "/v1/stats")]
        for answer in [*answers, await asked.topk(group())]:
            assert problem(answer) == (503, "ENGINE_UNAVAILABLE", None)
            assert answer.headers["retry-after"] == "2"
        for path in ("/", "/openapi.json", "/metrics", "/v1/requests"):
            assert (await asked.client.get(path)).status_code == 200


async def test_readiness_follows_and_life_does_not() -> None:
    async with asking() as asked:
        assert (await asked.client.get("/readyz")).json() == {"status": "serving"}
        asked.state.set_serving(False)
        assert problem(await asked.client.get("/readyz")) == (503, "NOT_SERVING", None)
        assert (await asked.client.get("/healthz")).status_code == 200


async def test_info_is_what_get_info_says_and_what_http_has_of_its_own(tmp_path: Path) -> None:
    config: dict[str, Any] = {"tokenizers": {"b": tmp_path, "a": tmp_path}, "compare_with": ["http://other:1"]}
    async with asking(record=1, **config) as asked:
        answer = await asked.client.get("/v1/info")
    InfoAnswer.model_validate_json(answer.content)
    info = answer.json()
    [teacher] = info["teachers"]
    assert (teacher["name"], teacher["vocabulary_size"], teacher["max_model_len"]) == ("professor", 259, 64)
    assert teacher["special_tokens"][2] == {"id": 2, "text": "<|im_end|>"}
    assert teacher["capabilities"]["candidates"] is True
    assert "tokenizer_json" not in teacher
    assert info["limits"]["max_message_bytes"] == 64 * 1024 * 1024  # a number, although the wire has 64 bits for it
    assert info["http"] == {
        "tokenizers": ["a", "b"],
        "compare_with": ["http://other:1"],
        "is_recording": True,
        "max_body_bytes": 8 * 1024 * 1024,
        "timeout_seconds": 60.0,
    }


async def test_stats_and_metrics_count_what_was_asked() -> None:
    async with asking() as asked:
        await asked.topk(group())
        await asked.topk(group(top_k=0))  # refused before it is a request to the teacher
        await asked.topk(group(top_k=999))
        answer = await asked.client.get("/v1/stats")
        metrics = (await asked.client.get("/metrics")).text
    StatsAnswer.model_validate_json(answer.content)
    stats = answer.json()
    assert (stats["requests_total"], stats["failed_total"], stats["positions_total"]) == (2, 1, 2)
    assert (stats["queue_groups"], stats["queue_tokens"], stats["tokens_in_flight"]) == (0, 0, 0)
    assert (stats["is_serving"], stats["max_queue_tokens"]) == (True, 1_000_000)
    for line in (
        'preceptor_requests_total{transport="http",tenant="anonymous",teacher="professor",outcome="ok"} 1',
        'preceptor_requests_total{transport="http",tenant="anonymous",teacher="professor",outcome="INVALID_FIELD"} 1',
        'preceptor_positions_total{transport="http",tenant="anonymous",teacher="professor"} 2',
        'preceptor_requests_in_progress{transport="http",tenant="anonymous"} 0',
        'preceptor_request_duration_seconds_count{transport="http",teacher="professor",outcome="ok"} 1',
        'preceptor_tokens_in_flight{teacher="professor"} 0',
        'preceptor_is_serving{teacher="professor"} 1',
    ):
        assert line in metrics.splitlines()


async def test_the_page_and_its_files_are_served_from_the_package() -> None:
    async with asking() as asked:
        page = await asked.client.get("/")
        assert page.content == (STATIC / "index.html").read_bytes()
        assert page.headers["content-type"] == "text/html; charset=utf-8"
        assert page.headers["cache-control"] == "no-cache"
        again = await asked.client.get("/", headers={"If-None-Match": page.headers["etag"]})
        assert (again.status_code, again.content) == (304, b"")
        assert (await asked.client.head("/")).status_code == 200
        for path in STATIC.rglob("*"):
            if path.is_file():
                answer = await asked.client.get(f"/static/{path.relative_to(STATIC)}")
                assert (answer.status_code, answer.content) == (200, path.read_bytes())
                assert answer.headers["cache-control"] == "no-cache"


def test_no_file_of_the_page_names_another_server() -> None:
    for path in STATIC.rglob("*"):
        if path.suffix in (".html", ".js", ".css"):
            loads = re.findall(r"""(?:src|href|url|import|fetch)\s*[=(]\s*["']?(https?:)?//""", path.read_text())
            assert loads == [], path


async def test_token_text_that_looks_like_a_page_stays_json() -> None:
    attack = "</script><img src=x onerror=alert(1)>"
    async with asking(tiny_teacher(max_model_len=256), record=2) as asked:
        answer = await asked.topk(group(prompt={"text": attack}, responses=[{"text": attack}], request_id=attack[:60]))
        listed = await asked.client.get("/v1/requests")
        wrong = await asked.topk(group(**{attack: 1}))
    assert answer.json()["request_id"] == attack[:60]
    assert listed.json()["records"][0]["preview"] == attack
    assert wrong.json()["field"] == attack
    for one, kind in ((answer, "application/json"), (listed, "application/json"), (wrong, "application/problem+json")):
        assert one.headers["content-type"] == kind
        assert one.headers["x-content-type-options"] == "nosniff"


class SlowEngine(FakeEngine):
    """Waits until it is told to go on, and remembers what it was given."""

    def __init__(self) -> None:
        super().__init__(vocabulary_size=300)
        self.go_on, self.begun = asyncio.Event(), asyncio.Event()
        self.num_tokens: list[int] = []

    async def score(self, batch: Any) -> list[GroupColumns]:
        groups: list[ScoreGroup] = list(batch)
        self.num_tokens += [one.num_tokens for one in groups]
        self.begun.set()
        await self.go_on.wait()
        return await super().score(groups)


async def send_and_leave(app: Any, body: bytes, *, leave: asyncio.Event) -> None:
    """A caller that goes away when told."""
    parts: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> Message:
        if parts:
            return parts.pop()
        await leave.wait()
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        """Nobody listens."""

    headers = [(b"host", b"127.0.0.1"), (b"content-type", b"application/json")]
    scope = {
        "type": "http",
        "method": "POST",
        "path": "/v1/topk",
        "raw_path": b"/v1/topk",
        "query_string": b"",
        "root_path": "",
        "scheme": "http",
        "http_version": "1.1",
        "headers": headers,
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 80),
    }
    await app(scope, receive, send)


def ids_body(num_tokens: int) -> bytes:
    return httpx.Request("POST", "http://a", json=group(responses=[{"ids": [6] * num_tokens}])).content


async def test_a_caller_that_goes_away_takes_its_queued_work_along() -> None:
    engine = SlowEngine()
    teacher = tiny_teacher()
    teacher = HostedTeacher(
        name="professor",
        engine=engine,
        tokenizer=None,
        aligner=None,
        scheduler=Scheduler(engine, SchedulerConfig(max_batch_tokens=10, batch_window_ms=0)),
        limits=teacher.limits,
        max_queue_tokens=1000,
    )
    state = HttpState(HttpConfig(port=0))
    state.host(ScoreService(Teachers([teacher]), observers=state.observatory.observers(state.recorder)))
    app = build_app(state)
    teacher.scheduler.start()
    first_leaves, second_leaves = asyncio.Event(), asyncio.Event()
    first = asyncio.create_task(send_and_leave(app, ids_body(1), leave=first_leaves))
    await engine.begun.wait()
    second = asyncio.create_task(send_and_leave(app, ids_body(9), leave=second_leaves))
    while not teacher.scheduler.num_waiting:
        await asyncio.sleep(0)
    second_leaves.set()
    await asyncio.wait_for(second, 5)
    assert teacher.scheduler.num_waiting == 0
    engine.go_on.set()
    await asyncio.wait_for(first, 5)
    await teacher.scheduler.stop()
    assert engine.num_tokens == [4]
    assert (state.traffic.num_requests, state.traffic.num_failed) == (2, 1)
    assert 'outcome="CANCELLED"' in state.observatory.metrics.render().decode()


async def test_http_counts_as_one_caller_per_address_and_of_low_weight() -> None:
    seen: list[Asker] = []

    class Watcher:
        def began(self, caller: Asker) -> None:
            seen.append(caller)

        def ended(self, outcome: object) -> None:
            """Not looked at."""

        def refused(self, refusal: object) -> None:
            """Not looked at."""

    teacher = tiny_teacher()
    async with asking(teacher, hosts=False, share=0.25) as asked:
        asked.state.host(ScoreService(Teachers([teacher]), observers=Observers([Watcher()])))
        await asked.topk(group())
    assert seen == [Caller(tenant=Tenant(name="peer:127.0.0.1"), name="http:127.0.0.1", transport="http", weight=0.25)]


async def test_a_named_tokenizer_is_registered_on_first_use(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|extra|>"]})
    tokenizer.save_pretrained(tmp_path)
    async with asking(tokenizers={"student": tmp_path}) as asked:
        assert asked.teacher.aligner is not None
        body = {"prompt": {"text": "ab"}, "responses": [{"text": " c<|extra|>"}], "tokenizer": "student"}
        answer = await asked.topk(body)
        assert answer.status_code == 200, answer.text
        shown = answer.json()
        assert asked.teacher.aligner.registry.get(shown["tokenizer_id"])
        assert shown["responses"][0]["status"] == ["ok", "ok", "special"]
        assert [shown["texts"][str(token)] for token in shown["responses"][0]["ids"]] == [" ", "c", "<|extra|>"]
        # By its id, once it is registered, it is known too.
        by_id = {"prompt": {"student_ids": [5]}, "responses": [{"ids": [6]}], "tokenizer": shown["tokenizer_id"]}
        assert (await asked.topk(by_id)).status_code == 200
        following = {"prompt": {"text": "ab"}, "tokenizer": "student"}
        assert (await asked.topk(following)).json()["responses"][0]["positions"] == [0]
        refused = await asked.topk({"prompt": {"text": "ab"}, "tokenizer": "student", "positions": "all"})
        assert problem(refused) == (400, "INVALID_FIELD", "tokenizer")


async def test_a_folder_without_a_tokenizer_is_told_by_name(tmp_path: Path) -> None:
    async with asking(tokenizers={"student": tmp_path}) as asked:
        answer = await asked.topk({"prompt": {"text": "ab"}, "tokenizer": "student"})
        assert problem(answer) == (400, "INVALID_TOKENIZER", "tokenizer")


@pytest.mark.parametrize("path", ["/v1/topk", "/v1/align"])
async def test_a_full_room_is_429_with_a_time(path: str) -> None:
    async with asking(max_waiting=0, share=0.001, timeout_seconds=5.0) as asked:
        grpc = Caller(tenant=Tenant(name="team"), name="trainer", transport="grpc")
        asked.state.traffic.began(grpc)
        async with asked.state.gate.turn(timeout_seconds=1):
            answer = await asked.client.post(path, json=group() if path == "/v1/topk" else {"response": {"ids": [5]}})
        assert problem(answer) == (429, "QUEUE_FULL", None)
        assert int(answer.headers["retry-after"]) >= 1
