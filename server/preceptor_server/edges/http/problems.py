"""Errors as problem details (RFC 9457): one table from gRPC's codes to HTTP's, and the body's own names for fields."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus

import grpc
import orjson
from starlette.responses import Response

from preceptor_server.edges.failures import Failure
from preceptor_server.errors import ServerError

MEDIA_TYPE = "application/problem+json"

STATUS_BY_CODE: dict[grpc.StatusCode, HTTPStatus] = {
    grpc.StatusCode.INVALID_ARGUMENT: HTTPStatus.BAD_REQUEST,
    grpc.StatusCode.UNAUTHENTICATED: HTTPStatus.UNAUTHORIZED,
    grpc.StatusCode.PERMISSION_DENIED: HTTPStatus.FORBIDDEN,
    grpc.StatusCode.NOT_FOUND: HTTPStatus.NOT_FOUND,
    grpc.StatusCode.FAILED_PRECONDITION: HTTPStatus.CONFLICT,
    grpc.StatusCode.UNIMPLEMENTED: HTTPStatus.UNPROCESSABLE_ENTITY,  # the caller asks too much: no fault of the server
    grpc.StatusCode.RESOURCE_EXHAUSTED: HTTPStatus.TOO_MANY_REQUESTS,
    grpc.StatusCode.DEADLINE_EXCEEDED: HTTPStatus.GATEWAY_TIMEOUT,
    grpc.StatusCode.UNAVAILABLE: HTTPStatus.SERVICE_UNAVAILABLE,
    grpc.StatusCode.INTERNAL: HTTPStatus.INTERNAL_SERVER_ERROR,
}

FIELDS: tuple[tuple[re.Pattern[str], str], ...] = (
    (re.compile(r"^prompt\.text\.text$"), "prompt.text"),
    (re.compile(r"^prompt\.chat\.tools"), "prompt.tools"),
    (re.compile(r"^prompt\.chat\.template_arguments"), "prompt.chat_template_kwargs"),
    (re.compile(r"(\.tool_calls\[\d+\])\.(name|arguments)$"), r"\1.function.\2"),
    (re.compile(r"^prompt\.chat(\.messages)?(?=[.\[]|$)"), "prompt.messages"),
    (re.compile(r"\.candidates(\.\w+)?$"), ".candidate_ids"),
    (re.compile(r"^tokenizer_id$"), "tokenizer"),
)
"""What the wire's fields are called in a body."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """What a caller is told."""

    status: HTTPStatus
    reason: str
    detail: str
    field: str | None = None
    retry_after_seconds: float | None = None
    headers: Mapping[str, str] | None = None

    def to_response(self) -> Response:
        content = {
            "type": "about:blank",
            "title": self.status.phrase,
            "status": self.status.value,
            "detail": self.detail,
            "reason": self.reason,
            "field": self.field,
            "retry_after_seconds": self.retry_after_seconds,
        }
        headers = dict(self.headers or {})
        if self.status is HTTPStatus.UNAUTHORIZED:
            headers["WWW-Authenticate"] = "Bearer"
        if self.retry_after_seconds is not None:
            headers["Retry-After"] = str(max(1, math.ceil(self.retry_after_seconds)))
        return Response(orjson.dumps(content), self.status, headers, MEDIA_TYPE)


class ProblemError(ServerError):
    """Raised where no error of the core says it, or in the place of one that names the wire's fields."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.detail)
        self.problem = problem
        self.reason = problem.reason


def problem_of(failure: Failure, *, fields: Mapping[str, str] | None = None) -> Problem:
    """What gRPC's caller would have been told. `fields` are names that this request's body has for the wire's."""
    named = body_field(failure.field, fields or {})
    detail = failure.message
    if failure.field and detail.startswith(f"{failure.field}: "):
        detail = f"{named}: {detail.removeprefix(f'{failure.field}: ')}"
    return Problem(
        status=STATUS_BY_CODE[failure.code],
        reason=failure.reason,
        detail=detail,
        field=named or None,
        retry_after_seconds=failure.retry_after_seconds or None,
    )


def body_field(name: str, fields: Mapping[str, str]) -> str:
    """What a field of the wire is called in the body."""
    for wire, own in fields.items():
        if name == wire or name.startswith((f"{wire}.", f"{wire}[")):
            return own
    for pattern, own in FIELDS:
        name = pattern.sub(own, name)
    return name
