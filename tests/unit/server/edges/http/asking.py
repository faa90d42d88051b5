"""The web application inside the test's own event loop: a fake engine, the tiny tokenizer, and httpx as the caller."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import httpx
from preceptor_server.alignment.teacher_tokenizer import TeacherTokenizer
from preceptor_server.edges.http.app import build_app
from preceptor_server.edges.http.config import HttpConfig
from preceptor_server.edges.http.state import HttpState
from preceptor_server.hosted import HostedTeacher
from preceptor_server.hosting import state_of
from preceptor_server.serving import ScoreService
from preceptor_server.teachers import Teachers

from tests.tiny import tiny_tokenizer
from tests.unit.server.hosting import hosted_teacher

URL = "http://127.0.0.1"
Body = dict[str, Any]  # Any: whatever JSON holds


@dataclass(frozen=True, slots=True)
class Asked:
    """A running application, and who asks it."""

    client: httpx.AsyncClient
    state: HttpState
    teacher: HostedTeacher

    async def topk(self, body: Body, **headers: str) -> httpx.Response:
        return await self.client.post("/v1/topk", json=body, headers=headers)


def tiny_teacher(**options: Any) -> HostedTeacher:  # Any: as hosted_teacher takes them
    defaults: dict[str, Any] = {"vocabulary_size": 259, "tokenizer": TeacherTokenizer(tiny_tokenizer())}
    return hosted_teacher(**defaults | options)


@asynccontextmanager
async def asking(
    teacher: HostedTeacher | None = None, *, hosts: bool = True, **config: Any
) -> AsyncIterator[Asked]:  # Any: fields of HttpConfig
    """With `hosts` false the model is still being loaded."""
    teacher = teacher or tiny_teacher()
    state = HttpState(HttpConfig(port=0, **config))
    if hosts:
        state.host(ScoreService(Teachers([teacher]), observers=state.observatory.observers(state.recorder)))
        state.set_serving(True)
        state.observatory.metrics.host(teacher.name, partial(state_of, teacher))
        state.observatory.health.set_serving(teacher.name, True)
    teacher.scheduler.start()
    transport = httpx.ASGITransport(app=build_app(state), raise_app_exceptions=False)
    try:
        async with httpx.AsyncClient(transport=transport, base_url=URL) as client:
            yield Asked(client, state, teacher)
    finally:
        await teacher.scheduler.stop()


def group(**fields: Any) -> Body:  # Any: fields of the body
    """A good body of /v1/topk."""
    body: Body = {"prompt": {"teacher_ids": [3, 4, 5]}, "responses": [{"ids": [6, 7]}], "top_k": 4}
    return body | fields


def problem(response: httpx.Response) -> tuple[int, str, str | None]:
    """Status, reason and field of a problem."""
    assert response.headers["content-type"] == "application/problem+json"
    told = response.json()
    assert set(told) == {"type", "title", "status", "detail", "reason", "field", "retry_after_seconds"}
    assert told["status"] == response.status_code
    return told["status"], told["reason"], told["field"]
