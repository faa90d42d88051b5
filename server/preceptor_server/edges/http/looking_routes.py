"""What can be looked at: the teacher, the queue, health, metrics."""

from __future__ import annotations

import asyncio
from http import HTTPStatus

from fastapi import APIRouter
from starlette.responses import Response

from preceptor_server.edges.grpc.description import encode_info
from preceptor_server.edges.http import answers, answers_about
from preceptor_server.edges.http.callers import LOOKING, LookingCaller
from preceptor_server.edges.http.describing import problems
from preceptor_server.edges.http.plain import json_response, to_plain
from preceptor_server.edges.http.problems import Problem, ProblemError
from preceptor_server.edges.http.state import HttpState
from preceptor_server.observability.families import MEDIA_TYPE as METRICS


def looking_routes(state: HttpState) -> APIRouter:
    """The routes, bound to what the server knows."""
    router = APIRouter()

    @router.get("/v1/info", response_model=answers_about.InfoAnswer, responses=problems(500, 503))
    async def info(caller: LookingCaller) -> Response:
        """Teachers, tokenizers, capabilities, limits."""
        teachers = state.service.teachers.allowed(caller.tenant)
        return json_response(to_plain(encode_info(teachers, include_tokenizer=False)) | {"http": _about(state)})

    @router.get("/v1/stats", response_model=answers.StatsAnswer, responses=problems(500, 503))
    async def stats(caller: LookingCaller) -> Response:
        """The queues and the throughput, now."""
        teachers, traffic = state.service.teachers.allowed(caller.tenant), state.traffic
        schedulers = [teacher.scheduler for teacher in teachers]
        return json_response(
            {
                "uptime_seconds": traffic.uptime_seconds,
                "is_serving": state.is_serving,
                "queue_groups": sum(scheduler.num_waiting for scheduler in schedulers),
                "queue_tokens": sum(scheduler.num_waiting_tokens for scheduler in schedulers),
                "max_queue_tokens": sum(teacher.max_queue_tokens for teacher in teachers),
                "tokens_in_flight": sum(scheduler.num_tokens_in_flight for scheduler in schedulers),
                "requests_total": traffic.num_requests,
                "failed_total": traffic.num_failed,
                "positions_total": traffic.num_positions,
                "positions_per_second": traffic.positions_per_second,
            }
        )

    @router.get("/healthz", response_model=answers.HealthAnswer, responses=problems(500))
    async def healthz() -> Response:
        """The process lives."""
        return json_response({"status": "alive"})

    @router.get("/readyz", response_model=answers.HealthAnswer, responses=problems(500, 503))
    async def readyz() -> Response:
        """The engine serves."""
        if state.is_serving:
            return json_response({"status": "serving"})
        raise ProblemError(
            Problem(
                status=HTTPStatus.SERVICE_UNAVAILABLE,
                reason="NOT_SERVING",
                detail="the engine does not serve: it is loaded, started again, or the server drains",
                retry_after_seconds=1.0,
            )
        )

    @router.get(
        "/metrics",
        dependencies=[LOOKING],
        response_class=Response,
        responses={200: {"content": {METRICS: {}}}, **problems(500)},
    )
    async def metrics() -> Response:
        """For Prometheus."""
        metrics = state.observatory.metrics
        return Response(await asyncio.to_thread(metrics.render), media_type=METRICS)

    return router


def _about(state: HttpState) -> dict[str, object]:
    """The HTTP side's own settings."""
    config = state.config
    return {
        "tokenizers": state.students.names,
        "compare_with": config.compare_with,
        "is_recording": state.recorder.is_recording,
        "max_body_bytes": config.max_body_bytes,
        "timeout_seconds": config.timeout_seconds,
    }
