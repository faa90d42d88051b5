"""What was scored last, where it is recorded: the list, and one of it."""

from __future__ import annotations

import asyncio
import time
from http import HTTPStatus
from typing import Annotated

from fastapi import APIRouter, Depends, Query
from fastapi import Path as InPath
from starlette.requests import Request
from starlette.responses import Response

from preceptor_server.http import answers
from preceptor_server.http.answer import build_answer, to_json
from preceptor_server.http.callers import caller_of
from preceptor_server.http.describing import problems
from preceptor_server.http.disconnects import while_connected
from preceptor_server.http.plain import JSON, json_response
from preceptor_server.http.problems import Problem, ProblemError
from preceptor_server.http.state import HttpState
from preceptor_server.http.texts import vocabularies_of

MAX_RECORDS = 1000
MAX_WAIT_SECONDS = 30.0
MAX_NUMBER = 2**53


def recorded_routes(state: HttpState) -> APIRouter:
    """The routes, bound to what the server recorded."""
    router = APIRouter(dependencies=[Depends(caller_of)])

    @router.get("/v1/requests", response_model=answers.RecordsAnswer, responses=problems(400, 500))
    async def list_requests(
        request: Request,
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
        records = [record.model_dump() for record in recorder.after(after, limit=limit)]
        return json_response({"records": records, "last": recorder.last, "is_recording": recorder.is_recording})

    @router.get(
        "/v1/requests/{number}", response_model=answers.TopkAnswer, responses=problems(400, 404, 429, 500, 503, 504)
    )
    async def show_request(number: Annotated[int, InPath(ge=0, le=MAX_NUMBER)]) -> Response:
        """One of them, as /v1/topk answered or would have."""
        kept = state.recorder.find(number)
        if kept is None:
            raise _not_found("NOT_RECORDED", f"number {number} is not recorded here, or no more", "number")
        if kept.request is None or kept.response is None:
            outcome = kept.record.outcome
            why = "it was too large to keep" if outcome == "ok" else f"it failed with {outcome}"
            raise _not_found("NO_SCORES", f"number {number} has no scores: {why}", "number")
        async with state.gate.turn(timeout_seconds=state.config.timeout_seconds) as turn:
            started = time.monotonic()
            vocabularies = vocabularies_of(kept.response.tokenizer_id, state.teacher)
            answer = await asyncio.to_thread(build_answer, kept.request, kept.response, kept.notes, vocabularies)
            written = await asyncio.to_thread(to_json, answer)
            turn.busy_seconds = time.monotonic() - started
        return Response(written, media_type=JSON)

    return router


def _not_found(reason: str, detail: str, field: str) -> ProblemError:
    return ProblemError(Problem(status=HTTPStatus.NOT_FOUND, reason=reason, detail=detail, field=field))
