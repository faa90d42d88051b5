"""What was scored last, where it is recorded: the list, and one of it."""

from __future__ import annotations

import asyncio
import time
from http import HTTPStatus
from typing import Annotated

from fastapi import APIRouter, Query
from fastapi import Path as InPath
from starlette.requests import Request
from starlette.responses import Response

from preceptor_server.callers import Caller
from preceptor_server.edges.http import answers
from preceptor_server.edges.http.answer import build_answer, to_json
from preceptor_server.edges.http.callers import LookingCaller, looking_caller
from preceptor_server.edges.http.describing import problems
from preceptor_server.edges.http.disconnects import while_connected
from preceptor_server.edges.http.plain import JSON, json_response
from preceptor_server.edges.http.problems import Problem, ProblemError
from preceptor_server.edges.http.state import HttpState
from preceptor_server.edges.http.texts import vocabularies_of

MAX_RECORDS = 1000
MAX_WAIT_SECONDS = 30.0
MAX_NUMBER = 2**53


def recorded_routes(state: HttpState) -> APIRouter:
    """The routes, bound to what the server recorded."""
    router = APIRouter()

    @router.get("/v1/requests", response_model=answers.RecordsAnswer, responses=problems(400, 500))
    async def list_requests(
        request: Request,
        caller: LookingCaller,
        after: Annotated[int, Query(ge=0, le=MAX_NUMBER, description="Only larger numbers.")] = 0,
        limit: Annotated[int, Query(ge=1, le=MAX_RECORDS, description="At most so many.")] = 100,
        wait_seconds: Annotated[
            float, Query(ge=0, le=MAX_WAIT_SECONDS, allow_inf_nan=False, description="Waits so long for one.")
        ] = 0.0,
    ) -> Response:
        """What was scored last, newest last."""
        recorder = state.recorder
        if wait_seconds:
            await while_connected(request, recorder.wait_for_one_after(after, timeout_seconds=wait_seconds))
            caller = await looking_caller(request)  # whose key may have been revoked meanwhile
        records = [record.model_dump() for record in recorder.after(after, limit=limit, tenant=_seen_by(caller, state))]
        return json_response({"records": records, "last": recorder.last, "is_recording": recorder.is_recording})

    @router.get(
        "/v1/requests/{number}", response_model=answers.TopkAnswer, responses=problems(400, 404, 429, 500, 503, 504)
    )
    async def show_request(number: Annotated[int, InPath(ge=0, le=MAX_NUMBER)], caller: LookingCaller) -> Response:
        """One of them, as /v1/topk answered or would have."""
        kept, tenant = state.recorder.find(number), _seen_by(caller, state)
        if kept is None or tenant not in (None, kept.tenant):
            raise _not_found("NOT_RECORDED", f"number {number} is not recorded here, or no more", "number")
        if kept.call is None or kept.scored is None:
            outcome = kept.record.outcome
            why = "it was too large to keep" if outcome == "ok" else f"it failed with {outcome}"
            raise _not_found("NO_SCORES", f"number {number} has no scores: {why}", "number")
        async with state.gate.turn(timeout_seconds=state.config.timeout_seconds) as turn:
            started = time.monotonic()
            vocabularies = vocabularies_of(kept.scored.tokenizer_id, state.service.teachers.get(kept.scored.teacher))
            answer = await asyncio.to_thread(build_answer, kept.call, kept.scored, kept.notes, vocabularies)
            written = await asyncio.to_thread(to_json, answer)
            turn.busy_seconds = time.monotonic() - started
        return Response(written, media_type=JSON)

    return router


def _seen_by(caller: Caller, state: HttpState) -> str | None:
    """The tenant whose groups the caller may look at; None = all. Prompts are for those who sent them, and where nobody
    has a key, nobody can be told apart."""
    return caller.tenant.name if state.identity.has_keys else None


def _not_found(reason: str, detail: str, field: str) -> ProblemError:
    return ProblemError(Problem(status=HTTPStatus.NOT_FOUND, reason=reason, detail=detail, field=field))
