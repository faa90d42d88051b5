"""Reads a failed call: its code, the reason and field that the server attached, and what to raise for it.

Decides whether asking again can help; knows nothing of channels, of clocks or of what was asked.
"""

from __future__ import annotations

from dataclasses import dataclass

import grpc
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2
from preceptor.wire import ERROR_DOMAIN

from preceptor_client.errors import (
    AccessDeniedError,
    GroupFailedError,
    InvalidRequestError,
    MessageTooLargeError,
    NotImplementedByServerError,
    PreceptorError,
    TeacherUnavailableError,
)

UNKNOWN_TOKENIZER = "UNKNOWN_TOKENIZER"
"""Reason of a refusal that handing over the tokenizer (again) cures."""
_FAILURES_OF_A_GROUP = ("BAD_GROUP", "ENGINE_FAILED", "GROUP_TOO_LARGE", "INTERNAL")
"""Reasons of INTERNAL by which the server says that it failed on what was sent."""
_DETAILS_KEY = "grpc-status-details-bin"
_REFUSALS = (
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.OUT_OF_RANGE,
    grpc.StatusCode.FAILED_PRECONDITION,
)
_DENIALS = (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED)
_CUT_OFF = ("RST_STREAM", "Stream removed")
"""By which gRPC says, whatever the code, that the other side cut a call off."""
_TOO_LARGE = "larger than max"
"""By which it says that a message was too large, which also ends with the stream removed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """Why one attempt failed."""

    code: grpc.StatusCode
    message: str
    reason: str = ""
    """UPPER_SNAKE_CASE; empty where the server did not write the error itself."""
    field: str = ""
    """The request's field at fault; empty where there is none."""
    incident: str = ""
    """The id under which the cause stands in the server's log; empty where it has none."""
    retry_after_seconds: float = 0.0
    """The server asks to wait at least this long before the next attempt."""

    @property
    def is_written_by_server(self) -> bool:
        """False for what gRPC or a proxy refused before the teacher saw it."""
        return bool(self.reason)

    @property
    def is_transient(self) -> bool:
        """Whether the same request may succeed later."""
        if self.is_written_by_server:
            return self.code in (grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.UNAVAILABLE)
        # Without an ErrorInfo RESOURCE_EXHAUSTED is gRPC's own "message larger than max", which no waiting cures. A
        # call that this side cancelled raises CancelledError, so CANCELLED came from the other.
        return self.code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED) or self.is_cut_off

    @property
    def is_cut_off(self) -> bool:
        """Whether the connection, not the server's program, ended the call."""
        if self.is_written_by_server or _TOO_LARGE in self.message:
            return False
        return any(sign in self.message for sign in _CUT_OFF)

    def __str__(self) -> str:
        return f"{self.code.name}: {self.message}" if self.message else self.code.name


def read_failure(error: grpc.aio.AioRpcError) -> Failure:
    """What a failed call says about itself, its google.rpc details included."""
    info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
    for detail in _details(error):
        if detail.Is(error_details_pb2.ErrorInfo.DESCRIPTOR):
            detail.Unpack(info)
        elif detail.Is(error_details_pb2.RetryInfo.DESCRIPTOR):
            detail.Unpack(retry)
    is_ours = info.domain == ERROR_DOMAIN
    return Failure(
        code=error.code(),
        message=error.details() or "",
        reason=info.reason if is_ours else "",
        field=info.metadata.get("field", "") if is_ours else "",
        incident=info.metadata.get("incident", "") if is_ours else "",
        retry_after_seconds=max(0.0, retry.retry_delay.seconds + retry.retry_delay.nanos / 1e9),
    )


def exception_for(
    failure: Failure, *, address: str, request_bytes: int, max_message_bytes: int, smaller: str
) -> PreceptorError:
    """The exception for a failure that another attempt cannot cure. `smaller` says how a message becomes smaller."""
    message = f"teacher {address}: {failure}"
    if failure.code in _REFUSALS:
        return InvalidRequestError(message, field=failure.field, reason=failure.reason)
    if failure.code in _DENIALS:
        return AccessDeniedError(message, reason=failure.reason)
    if failure.code is grpc.StatusCode.UNIMPLEMENTED:
        return NotImplementedByServerError(message)
    is_transient = failure.is_transient
    if failure.code is grpc.StatusCode.RESOURCE_EXHAUSTED and not is_transient:
        return MessageTooLargeError(
            f"{message} (the request has {request_bytes} bytes, this client accepts messages of {max_message_bytes}): "
            f"{smaller}, or raise max_message_bytes on the side that refused"
        )
    if failure.code is grpc.StatusCode.INTERNAL and failure.reason in _FAILURES_OF_A_GROUP:
        return GroupFailedError(message, reason=failure.reason, incident=failure.incident or failure.message)
    if failure.code is grpc.StatusCode.DEADLINE_EXCEEDED or is_transient:
        return TeacherUnavailableError(message, code=failure.code.name, retry_after_seconds=failure.retry_after_seconds)
    return PreceptorError(message)


def _details(error: grpc.aio.AioRpcError) -> list[error_details_pb2.Any]:
    for key, value in error.trailing_metadata() or ():
        if key == _DETAILS_KEY and isinstance(value, bytes):
            try:
                return list(status_pb2.Status.FromString(value).details)
            except DecodeError:
                # A proxy's own bytes: the code and the message still say what happened.
                return []
    return []
