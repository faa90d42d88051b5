"""POST /v1/topk and /v1/align: a body in, the teacher's columns out."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Annotated, TypeVar

from fastapi import APIRouter, Depends
from preceptor.v1 import teacher_pb2 as pb
from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from preceptor_server.decoding import decode_off_loop
from preceptor_server.http import answers, answers_about
from preceptor_server.http.accept import choose_form
from preceptor_server.http.align import show_alignment
from preceptor_server.http.answer import build_answer, to_json, to_lines, to_msgpack
from preceptor_server.http.bodies import read_body
from preceptor_server.http.callers import caller_of
from preceptor_server.http.describing import body_of, problems
from preceptor_server.http.disconnects import while_connected
from preceptor_server.http.plain import JSON, json_response
from preceptor_server.http.problems import ProblemError, problem_of
from preceptor_server.http.requests import AlignRequest, PromptBody, TopkRequest
from preceptor_server.http.state import HttpState
from preceptor_server.http.texts import vocabularies_of
from preceptor_server.http.translate import (
    Translated,
    check_texts,
    ids_of,
    segmentation_of,
    to_ids,
    to_prompt,
    translate_topk,
)
from preceptor_server.segmentation import find_alignment
from preceptor_server.serving import Caller
from preceptor_server.status import failure_of

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
    async def topk(request: Request, caller: Annotated[Caller, Depends(caller_of)]) -> Response:
        form = choose_form(request.headers.get("accept", ""), FORMS)
        body = await _body(request, TopkRequest, state)
        return await while_connected(request, _topk(body, caller, form, state))

    @router.post(
        "/v1/align",
        summary="How a text is cut, aligned and masked; no model is asked",
        response_model=answers_about.AlignAnswer,
        responses=problems(*_PROBLEMS),
        dependencies=[Depends(caller_of)],
        openapi_extra=body_of(AlignRequest),
    )
    async def align(request: Request) -> Response:
        choose_form(request.headers.get("accept", ""), (JSON,))
        body = await _body(request, AlignRequest, state)
        return await while_connected(request, _align(body, state))

    return router


async def _body(request: Request, model: type[BodyT], state: HttpState) -> BodyT:
    config = state.config
    state.gate.refuse_if_hopeless(config.timeout_seconds)
    return await read_body(request, model, max_bytes=config.max_body_bytes, timeout_seconds=config.timeout_seconds)


async def _topk(body: TopkRequest, caller: Caller, form: str, state: HttpState) -> Response:
    deadline = time.monotonic() + state.config.timeout_seconds
    async with state.gate.turn(timeout_seconds=state.config.timeout_seconds) as turn:
        started = time.monotonic()
        try:
            student = await state.students.find(body.tokenizer, state.teacher)
            translated = await asyncio.to_thread(translate_topk, body, state.teacher, student)
            response = await _named(translated, lambda: _score(translated, caller, deadline, state))
            waited_seconds = response.timings.queue_ms / 1000
            written = await _written(translated, response, form, state)
            turn.busy_seconds = max(0.0, time.monotonic() - started - waited_seconds)
        except BaseException:  # how long it was waited for is not known then, nor whether a forward goes on
            turn.busy_seconds = min(_FAILED_SECONDS, time.monotonic() - started)
            raise
        return written


async def _score(translated: Translated, caller: Caller, deadline: float, state: HttpState) -> pb.ScoreResponse:
    left = max(0.0, deadline - time.monotonic())
    return await state.service.score(translated.request, caller=caller, timeout_seconds=left, notes=translated.notes)


async def _named(translated: Translated, work: Callable[[], Awaitable[pb.ScoreResponse]]) -> pb.ScoreResponse:
    """What the work returns; its errors name the body's fields."""
    try:
        return await work()
    except Exception as error:
        raise ProblemError(problem_of(failure_of(error), fields=translated.fields)) from error


async def _written(translated: Translated, response: pb.ScoreResponse, form: str, state: HttpState) -> Response:
    request, notes = translated.request, translated.notes
    if form == MSGPACK:
        return Response(await asyncio.to_thread(to_msgpack, request, response, notes), media_type=MSGPACK)
    vocabularies = vocabularies_of(response.tokenizer_id, state.teacher)
    answer = await asyncio.to_thread(build_answer, request, response, notes, vocabularies)
    if form == LINES:
        return StreamingResponse(to_lines(answer), media_type=LINES)
    return Response(await asyncio.to_thread(to_json, answer), media_type=JSON)


async def _align(body: AlignRequest, state: HttpState) -> Response:
    async with state.gate.turn(timeout_seconds=state.config.timeout_seconds) as turn:
        started = time.monotonic()
        try:
            teacher = state.teacher
            student = await state.students.find(body.tokenizer, teacher)
            check_texts(body.prompt, [body.response], teacher)
            ids = await asyncio.to_thread(ids_of, body.response, student, field="response")
            request = pb.ScoreRequest(
                tokenizer_id=student.tokenizer_id,
                prompt=to_prompt(body.prompt or PromptBody(teacher_ids=[0])),
                responses=[pb.Response(ids=to_ids(ids))],
                top_k=1,
                temperature=1,
                segmentation=segmentation_of(body),
                paper_token_ids=body.paper_token_ids,
            )
            call = await decode_off_loop(request, teacher)
            alignment = find_alignment(call.tokenizer_id, teacher)
            shown = await asyncio.to_thread(show_alignment, call, alignment, teacher)
            return json_response(shown)
        except Exception as error:
            name = "response.text" if body.response.text else "response.ids"
            fields = {"responses[0].text": name, "responses[0].ids": name, "responses[0]": "response"}
            raise ProblemError(problem_of(failure_of(error), fields=fields)) from error
        finally:
            turn.busy_seconds = time.monotonic() - started
