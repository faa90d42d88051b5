"""Maps the server's errors to canonical gRPC codes, with google.rpc.ErrorInfo and RetryInfo: one table."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status
from preceptor.wire import ERROR_DOMAIN

from preceptor_server.errors import (
    INTERNAL,
    DeadlinePassedError,
    EngineFailedError,
    EngineOutOfMemoryError,
    EngineUnavailableError,
    ForbiddenError,
    InvalidRequestError,
    NotYetImplementedError,
    QueueFullError,
    QuotaExceededError,
    ServerError,
    UnauthenticatedError,
    UnknownTeacherError,
    UnknownTokenizerError,
    WeightUpdateError,
)
from preceptor_server.observability.rate_limited import RateLimited

logger = RateLimited(logging.getLogger(__name__))

CODE_BY_ERROR: dict[type[ServerError], grpc.StatusCode] = {
    UnknownTeacherError: grpc.StatusCode.NOT_FOUND,
    UnknownTokenizerError: grpc.StatusCode.NOT_FOUND,
    InvalidRequestError: grpc.StatusCode.INVALID_ARGUMENT,
    NotYetImplementedError: grpc.StatusCode.UNIMPLEMENTED,
    UnauthenticatedError: grpc.StatusCode.UNAUTHENTICATED,
    ForbiddenError: grpc.StatusCode.PERMISSION_DENIED,
    QuotaExceededError: grpc.StatusCode.RESOURCE_EXHAUSTED,
    QueueFullError: grpc.StatusCode.RESOURCE_EXHAUSTED,
    DeadlinePassedError: grpc.StatusCode.DEADLINE_EXCEEDED,
    EngineFailedError: grpc.StatusCode.INTERNAL,
    EngineOutOfMemoryError: grpc.StatusCode.INTERNAL,
    EngineUnavailableError: grpc.StatusCode.UNAVAILABLE,
    WeightUpdateError: grpc.StatusCode.FAILED_PRECONDITION,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """What a caller is told."""

    code: grpc.StatusCode
    reason: str
    message: str
    field: str = ""
    incident: str = ""
    """What finds the cause in the server's log."""
    retry_after_seconds: float = 0.0

    def to_status(self) -> grpc.Status:
        """For `context.abort_with_status`."""
        details = [error_details_pb2.ErrorInfo(reason=self.reason, domain=ERROR_DOMAIN, metadata=self._metadata())]
        if self.retry_after_seconds:
            delay = duration_pb2.Duration()
            delay.FromNanoseconds(int(self.retry_after_seconds * 1e9))
            details.append(error_details_pb2.RetryInfo(retry_delay=delay))
        packed = [any_pb2.Any() for _ in details]
        for wrapper, detail in zip(packed, details, strict=True):
            wrapper.Pack(detail)
        status: grpc.Status = rpc_status.to_status(
            status_pb2.Status(code=self.code.value[0], message=self.message, details=packed)
        )  # fmt: skip
        return status

    def _metadata(self) -> dict[str, str]:
        return {name: text for name, text in (("field", self.field), ("incident", self.incident)) if text}


def failure_of(error: Exception) -> Failure:
    """What to tell the caller. An error that nobody foresaw is INTERNAL, and logged with its traceback: once a
    second where a request causes the same again and again."""
    for kind in type(error).__mro__:
        if kind in CODE_BY_ERROR:
            assert isinstance(error, ServerError)
            return Failure(
                code=CODE_BY_ERROR[kind],
                reason=error.reason,
                message=str(error),
                field=getattr(error, "field", ""),
                incident=getattr(error, "incident", ""),
                retry_after_seconds=getattr(error, "retry_after_seconds", 0.0),
            )
    logger.error("unforeseen error", event=(type(error), _origin_of(error)), exc_info=error)
    return Failure(
        code=grpc.StatusCode.INTERNAL,
        reason=INTERNAL,
        message=f"the server failed ({type(error).__name__}); its log says more",
    )


def _origin_of(error: Exception) -> tuple[str, int] | None:
    """File and line where it was raised; None where it never was."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return None if trace is None else (trace.tb_frame.f_code.co_filename, trace.tb_lineno)
