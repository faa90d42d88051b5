"""Reads the body of a request: bounded, JSON, and valid, or a problem that says what is wrong and where."""

from __future__ import annotations

import asyncio
from email.message import Message
from http import HTTPStatus
from typing import TypeVar

from preceptor.settings_errors import words_of
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails
from starlette.requests import ClientDisconnect, Request

from preceptor_server.edges.http.disconnects import CallerGoneError
from preceptor_server.edges.http.problems import Problem, ProblemError

BodyT = TypeVar("BodyT", bound=BaseModel)

_SMALL_BYTES = 64 * 1024
"""Up to here a body is read at once; larger ones in a thread."""
_MAX_CHARACTERS = 300
"""Of a mistake, which may repeat a name that the caller made up."""
_MAX_SHOWN = 3
"""Mistakes that one answer tells."""


async def read_body(request: Request, model: type[BodyT], *, max_bytes: int, timeout_seconds: float) -> BodyT:
    """Raises ProblemError: 415, 413, 408 or 400; and CallerGoneError."""
    check_is_json(request)
    try:
        async with asyncio.timeout(timeout_seconds):
            data = await _read(request, max_bytes)
    except TimeoutError:
        raise _too_slow(timeout_seconds) from None
    except ClientDisconnect:
        raise CallerGoneError from None
    if len(data) > _SMALL_BYTES:
        return await asyncio.to_thread(_parse, data, model)
    return _parse(data, model)


def check_is_json(request: Request) -> None:
    """A page of another origin can send a form or plain text without being asked, JSON it cannot."""
    header = Message()
    header["content-type"] = request.headers.get("content-type", "")
    if header.get_content_type() != "application/json" or "application/json" not in header["content-type"].lower():
        raise ProblemError(
            Problem(
                status=HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
                reason="UNSUPPORTED_MEDIA_TYPE",
                detail="send application/json, and say so in Content-Type",
                headers={"Accept": "application/json"},
            )
        )


def invalid(detail: str, *, reason: str = "INVALID_FIELD", field: str | None = None) -> ProblemError:
    """A request that cannot be served as it is."""
    return ProblemError(Problem(status=HTTPStatus.BAD_REQUEST, reason=reason, detail=detail, field=field))


def field_of(location: tuple[int | str, ...]) -> str:
    """("responses", 0, "ids") is responses[0].ids."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location).removeprefix(".")


def problem_of_validation(error: ValidationError) -> ProblemError:
    """What a model found wrong, by field; the first one is the answer's field."""
    mistakes = error.errors(include_url=False, include_input=False, include_context=False)
    if mistakes[0]["type"] == "json_invalid":
        return invalid(f"the body is not JSON: {mistakes[0]['msg']}", reason="MALFORMED_JSON")
    told = [f"{field_of(one['loc']) or 'body'}: {_words_of(one)}" for one in mistakes[:_MAX_SHOWN]]
    if len(mistakes) > _MAX_SHOWN:
        told.append(f"and {len(mistakes) - _MAX_SHOWN} more")
    return invalid(
        "; ".join(one[:_MAX_CHARACTERS] for one in told), field=field_of(mistakes[0]["loc"])[:_MAX_CHARACTERS] or None
    )


def _words_of(mistake: ErrorDetails) -> str:
    if mistake["type"] == "extra_forbidden":
        return "there is no such field; /openapi.json lists those that there are"
    return words_of(mistake)


async def _read(request: Request, max_bytes: int) -> bytes:
    declared = request.headers.get("content-length", "0")
    data = bytearray()
    if declared.isdigit() and int(declared) > max_bytes:
        raise _too_large(max_bytes)
    async for chunk in request.stream():
        data += chunk
        if len(data) > max_bytes:
            raise _too_large(max_bytes)
    return bytes(data)


def _parse(data: bytes, model: type[BodyT]) -> BodyT:
    try:
        return model.model_validate_json(data)
    except ValidationError as error:
        raise problem_of_validation(error) from None


def _too_slow(timeout_seconds: float) -> ProblemError:
    return ProblemError(
        Problem(
            status=HTTPStatus.REQUEST_TIMEOUT,
            reason="BODY_TOO_SLOW",
            detail=f"the body did not come within http.timeout_seconds={timeout_seconds:g}",
            headers={"Connection": "close"},
        )
    )


def _too_large(max_bytes: int) -> ProblemError:
    return ProblemError(
        Problem(
            status=HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
            reason="BODY_TOO_LARGE",
            detail=f"the body has more than this server's http.max_body_bytes={max_bytes:,}: send less, or use gRPC",
            headers={"Connection": "close"},
        )
    )
