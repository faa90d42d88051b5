"""Reads a failed HTTP call: problem details (RFC 9457) with gRPC's reason and field, and what to raise for them.

Decides whether asking again can help; knows nothing of connections or of what was asked.
"""

from __future__ import annotations

from dataclasses import dataclass
from http import HTTPStatus

from pydantic import TypeAdapter, ValidationError

from preceptor_client.errors import (
    AccessDeniedError,
    InvalidRequestError,
    MessageTooLargeError,
    NotImplementedByServerError,
    PreceptorError,
    TeacherUnavailableError,
)

_PASSING = (HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.BAD_GATEWAY, HTTPStatus.SERVICE_UNAVAILABLE)
_DENIALS = (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN)
NO_ANSWER = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Details:
    """The members of problem details that a client acts on."""

    detail: str | None = None
    reason: str | None = None
    field: str | None = None
    retry_after_seconds: float | None = None


_NOT_IMPLEMENTED = "NOT_IMPLEMENTED"
"""The reason of what this teacher cannot do, whoever asks."""
_DETAILS = TypeAdapter(_Details)


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """Why one attempt failed."""

    status: int
    """Of the answer; NO_ANSWER where there was none."""
    message: str
    reason: str = ""
    """UPPER_SNAKE_CASE; empty where no teacher server wrote the answer."""
    field: str = ""
    """The request's field at fault; empty where there is none."""
    retry_after_seconds: float = 0.0
    """The server asks to wait at least this long before the next attempt."""

    @property
    def is_transient(self) -> bool:
        """Whether the same request may succeed later."""
        return self.status == NO_ANSWER or self.status in _PASSING

    @property
    def code(self) -> str:
        """The status as text; empty where there was no answer."""
        return "" if self.status == NO_ANSWER else str(self.status)

    def __str__(self) -> str:
        if self.status == NO_ANSWER:
            return self.message
        name = f"{self.status} {_phrase(self.status)}".rstrip()
        return f"{name}: {self.message}" if self.message else name


def read_problem(status: int, body: bytes) -> Problem:
    """What an answer that is no success says about itself."""
    try:
        details = _DETAILS.validate_json(body)
    except ValidationError:
        # A proxy's page, or another program's: the status still says what happened.
        return Problem(status=status, message="")
    return Problem(
        status=status,
        message=details.detail or "",
        reason=details.reason or "",
        field=details.field or "",
        retry_after_seconds=max(0.0, details.retry_after_seconds or 0.0),
    )


def exception_for(problem: Problem, *, url: str) -> PreceptorError:
    """The exception for a failure that another attempt cannot cure."""
    message = f"teacher {url}: {problem}"
    if problem.is_transient or problem.status == HTTPStatus.GATEWAY_TIMEOUT:
        return TeacherUnavailableError(message, code=problem.code, retry_after_seconds=problem.retry_after_seconds)
    if problem.status in _DENIALS:
        return AccessDeniedError(message, reason=problem.reason)
    if problem.reason == _NOT_IMPLEMENTED:
        return NotImplementedByServerError(message)
    if problem.status == HTTPStatus.REQUEST_ENTITY_TOO_LARGE:
        return MessageTooLargeError(message)
    if not problem.reason:
        return PreceptorError(f"{message} (is this the HTTP side, http.port, of a preceptor-server?)")
    if HTTPStatus.BAD_REQUEST <= problem.status < HTTPStatus.INTERNAL_SERVER_ERROR:
        return InvalidRequestError(message, field=problem.field, reason=problem.reason)
    return PreceptorError(message)


def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return ""
