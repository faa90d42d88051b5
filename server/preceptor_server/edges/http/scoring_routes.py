"""POST /v1/topk and /v1/align: a body in, the teacher's columns out."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from typing import TypeVar

import numpy as np
from fastapi import APIRouter
from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from preceptor_server.callers import Caller
from preceptor_server.calls import ScoreCall, ScoredCall, TeacherIds
from preceptor_server.edges.failures import failure_of
from preceptor_server.edges.http import answers, answers_about
from preceptor_server.edges.http.accept import choose_form
from preceptor_server.edges.http.align import show_alignment
from preceptor_server.edges.http.answer import build_answer, to_json, to_lines, to_msgpack
from preceptor_server.edges.http.bodies import read_body
from preceptor_server.edges.http.callers import ScoringCaller
from preceptor_server.edges.http.describing import body_of, problems
from preceptor_server.edges.http.disconnects import while_connected
from preceptor_server.edges.http.plain import JSON, json_response
from preceptor_server.edges.http.problems import ProblemError, problem_of
from preceptor_server.edges.http.requests import AlignRequest, TopkRequest
from preceptor_server.edges.http.state import HttpState
from preceptor_server.edges.http.texts import vocabularies_of
from preceptor_server.edges.http.translate import (
    Translated,
    check_texts,
    ids_of,
    read_own_prompt,
    response_of,
    segmentation_of,
    to_prompt,
    translate_topk,
)
from preceptor_server.errors import DeadlinePassedError
from preceptor_server.hosted import HostedTeacher
from preceptor_server.preparing import prepare_call
from preceptor_server.segmentation import find_alignment

BodyT = TypeVar("BodyT", bound=BaseModel)

LINES, MSGPACK = "application/x-ndjson", "application/msgpack"
_FAILED_SECONDS = 1.0
"""What a request that failed counts at most."""
FORMS = (JSON, LINES, MSGPACK)
_PROBLEMS = (400, 404, 406, 408, 413, 415, 422, 429, 500, 503, 504)


def scoring_routes(state: HttpState) -> APIRouter:
    """The routes, bound to what the server knows."""
    router = APIRouter()

    @router.post(
        "/v1/topk",
        summary="What the teacher thinks of a response, or of what may follow a prompt",
        response_model=answers.TopkAnswer,
        responses={
            200: {"content": {LINES: {}, MSGPACK: {}}},
            **problems(*_PROBLEMS),
        },
        openapi_extra=body_of(TopkRequest),
    )
    async def topk(request: Request, caller: ScoringCaller) -> Response:
        form = choose_form(request.headers.get("accept", ""), FORMS)
        body = await _body(request, TopkRequest, caller, state)
        return await while_connected(request, _topk(body, caller, form, state))

    @router.post(
        "/v1/align",
        summary="How a text is cut, aligned and masked; no model is asked",
        response_model=answers_about.AlignAnswer,
        responses=problems(*_PROBLEMS),
        openapi_extra=body_of(AlignRequest),
    )
    async def align(request: Request, caller: ScoringCaller) -> Response:
        choose_form(request.headers.get("accept", ""), (JSON,))
        body = await _body(request, AlignRequest, caller, state)
        return await while_connected(request, _align(body, caller, state))

    return router


async def _body(request: Request, model: type[BodyT], caller: Caller, state: HttpState) -> BodyT:
    """Waits for room for it: what is not read stays in the caller's and the kernel's buffers."""
    max_bytes, timeout_seconds = state.config.max_body_bytes, state.config.timeout_seconds
    state.gate.refuse_if_hopeless(timeout_seconds)
    async with AsyncExitStack() as stack:
        try:
            async with asyncio.timeout(timeout_seconds):
                await stack.enter_async_context(state.bodies.slot(caller.tenant))
        except TimeoutError:
            waited = f"the deadline passed after {timeout_seconds:g} s of waiting for other bodies to be read"
            raise DeadlinePassedError(waited) from None
        return await read_body(request, model, max_bytes=max_bytes, timeout_seconds=timeout_seconds)


async def _topk(body: TopkRequest, caller: Caller, form: str, state: HttpState) -> Response:
    deadline = time.monotonic() + state.config.timeout_seconds
    async with state.gate.turn(timeout_seconds=state.config.timeout_seconds) as turn:
        started = time.monotonic()
        try:
            teacher = state.teacher(body.teacher, caller)
            student = await state.students.find(body.tokenizer, teacher)
            check_texts(body.prompt, body.responses, teacher)
            own_ids = await read_own_prompt(body, teacher, caller_key=caller.tenant.name)
            translated = await asyncio.to_thread(translate_topk, body, teacher, student, own_prompt_ids=own_ids)
            scored = await _named(translated, lambda: _score(translated, caller, deadline, state))
            waited_seconds = scored.timings.queue_ms / 1000
            written = await _written(translated, scored, form, teacher)
            turn.busy_seconds = max(0.0, time.monotonic() - started - waited_seconds)
        except BaseException:  # how long it was waited for is not known then, nor whether a forward goes on
            turn.busy_seconds = min(_FAILED_SECONDS, time.monotonic() - started)
            raise
        return written


async def _score(translated: Translated, caller: Caller, deadline: float, state: HttpState) -> ScoredCall:
    left = max(0.0, deadline - time.monotonic())
    return await state.service.score(translated.call, caller, timeout_seconds=left, notes=translated.notes)


async def _named(translated: Translated, work: Callable[[], Awaitable[ScoredCall]]) -> ScoredCall:
    """What the work returns; its errors name the body's fields."""
    try:
        return await work()
    except Exception as error:
        raise ProblemError(problem_of(failure_of(error), fields=translated.fields)) from error


async def _written(translated: Translated, scored: ScoredCall, form: str, teacher: HostedTeacher) -> Response:
    call, notes = translated.call, translated.notes
    if form == MSGPACK:
        return Response(await asyncio.to_thread(to_msgpack, call, scored, notes), media_type=MSGPACK)
    vocabularies = vocabularies_of(scored.tokenizer_id, teacher)
    answer = await asyncio.to_thread(build_answer, call, scored, notes, vocabularies)
    if form == LINES:
        return StreamingResponse(to_lines(answer), media_type=LINES)
    return Response(await asyncio.to_thread(to_json, answer), media_type=JSON)


async def _align(body: AlignRequest, caller: Caller, state: HttpState) -> Response:
    async with state.gate.turn(timeout_seconds=state.config.timeout_seconds) as turn:
        started = time.monotonic()
        try:
            teacher = state.teacher(body.teacher, caller)
            student = await state.students.find(body.tokenizer, teacher)
            check_texts(body.prompt, [body.response], teacher)
            ids = await asyncio.to_thread(ids_of, body.response, student, field="response")
            call = ScoreCall(
                tokenizer_id=student.tokenizer_id,
                prompt=to_prompt(body.prompt) if body.prompt else TeacherIds(ids_P=np.zeros(1, np.int64)),
                responses=(response_of(ids),),
                top_k=1,
                temperature=1.0,
                segmentation=segmentation_of(body),
                paper_token_ids=tuple(body.paper_token_ids),
            )
            prepared = await prepare_call(call, teacher, caller_key=caller.tenant.name)
            alignment = find_alignment(prepared.tokenizer_id, teacher)
            shown = await asyncio.to_thread(show_alignment, prepared, alignment, teacher)
            return json_response(shown)
        except Exception as error:
            name = "response.text" if body.response.text else "response.ids"
            fields = {"responses[0].text": name, "responses[0].ids": name, "responses[0]": "response"}
            raise ProblemError(problem_of(failure_of(error), fields=fields)) from error
        finally:
            turn.busy_seconds = time.monotonic() - started
