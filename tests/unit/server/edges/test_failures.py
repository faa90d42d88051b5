from __future__ import annotations

import logging
from collections.abc import Callable

import grpc
import pytest
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2
from preceptor_server.edges.failures import failure_of
from preceptor_server.errors import (
    DeadlinePassedError,
    EngineDiedError,
    EngineFailedError,
    EngineUnavailableError,
    InvalidRequestError,
    NotYetImplementedError,
    QueueFullError,
    ServerError,
    UnknownTeacherError,
)

DETAILS_KEY = "grpc-status-details-bin"


def details_of(status: grpc.Status) -> tuple[status_pb2.Status, list[Message]]:
    """What a client unpacks from the trailing metadata."""
    packed = dict(status.trailing_metadata or ())[DETAILS_KEY]
    assert isinstance(packed, bytes)
    rich = status_pb2.Status.FromString(packed)
    details: list[Message] = []
    for wrapper in rich.details:
        for kind in (error_details_pb2.ErrorInfo, error_details_pb2.RetryInfo):
            if wrapper.Is(kind.DESCRIPTOR):
                detail = kind()
                wrapper.Unpack(detail)
                details.append(detail)
    assert len(details) == len(rich.details)
    return rich, details


@pytest.mark.parametrize(
    ("error", "code", "reason", "field"),
    [
        (InvalidRequestError("top_k", "is 0"), grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD", "top_k"),
        (
            InvalidRequestError("prompt", "too long", reason="BEYOND_CONTEXT"),
            grpc.StatusCode.INVALID_ARGUMENT,
            "BEYOND_CONTEXT",
            "prompt",
        ),
        (
            UnknownTeacherError("teacher", "unheard of", reason="UNKNOWN_TEACHER"),
            grpc.StatusCode.NOT_FOUND,
            "UNKNOWN_TEACHER",
            "teacher",
        ),
        (NotYetImplementedError("adapter", "none"), grpc.StatusCode.UNIMPLEMENTED, "NOT_IMPLEMENTED", "adapter"),
        (QueueFullError("full", retry_after_seconds=2.5), grpc.StatusCode.RESOURCE_EXHAUSTED, "QUEUE_FULL", ""),
        (DeadlinePassedError("late"), grpc.StatusCode.DEADLINE_EXCEEDED, "DEADLINE_PASSED", ""),
        (EngineFailedError("oom"), grpc.StatusCode.INTERNAL, "ENGINE_FAILED", ""),
        (
            EngineUnavailableError("starting again", retry_after_seconds=4),
            grpc.StatusCode.UNAVAILABLE,
            "ENGINE_UNAVAILABLE",
            "",
        ),
        (EngineDiedError("killed", retry_after_seconds=1), grpc.StatusCode.UNAVAILABLE, "ENGINE_DIED", ""),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, ServerError) else None,
)
def test_error_becomes_its_canonical_code_with_reason_and_field(
    error: ServerError, code: grpc.StatusCode, reason: str, field: str
) -> None:
    status = failure_of(error).to_status()
    rich, details = details_of(status)
    assert (status.code, status.details) == (code, str(error))
    assert (rich.code, rich.message) == (code.value[0], str(error))
    metadata = {"field": field} if field else {}
    assert details[0] == error_details_pb2.ErrorInfo(reason=reason, domain="preceptor", metadata=metadata)


@pytest.mark.parametrize("kind", [QueueFullError, EngineUnavailableError, EngineDiedError])
def test_what_passes_carries_its_retry_delay(kind: Callable[..., ServerError]) -> None:
    _, details = details_of(failure_of(kind("passes", retry_after_seconds=2.75)).to_status())
    retry = details[1]
    assert isinstance(retry, error_details_pb2.RetryInfo)
    assert (retry.retry_delay.seconds, retry.retry_delay.nanos) == (2, 750_000_000)


def test_other_errors_carry_no_retry_delay() -> None:
    _, details = details_of(failure_of(InvalidRequestError("top_k", "is 0")).to_status())
    assert len(details) == 1


@pytest.mark.parametrize("error", [KeyError("/etc/secret"), ValueError("/etc/secret"), ServerError("/etc/secret")])
def test_unforeseen_error_is_internal_and_logged_and_its_words_stay_here(
    error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.ERROR):
        status = failure_of(error).to_status()
    _, details = details_of(status)
    assert status.code is grpc.StatusCode.INTERNAL
    assert type(error).__name__ in status.details
    assert "secret" not in status.details
    assert details == [error_details_pb2.ErrorInfo(reason="INTERNAL", domain="preceptor")]
    assert caplog.records[0].exc_info is not None
    assert caplog.records[0].exc_info[1] is error


def raised(kind: type[Exception], *, elsewhere: bool = False) -> Exception:
    try:
        if elsewhere:
            raise kind
        raise kind
    except kind as error:
        return error


def test_the_same_unforeseen_error_in_a_loop_is_logged_once_and_others_are_too(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class OwnError(Exception):
        pass

    with caplog.at_level(logging.ERROR):
        for _ in range(100):
            assert failure_of(raised(OwnError)).code is grpc.StatusCode.INTERNAL
        failure_of(raised(OwnError, elsewhere=True))
        failure_of(raised(type("OtherError", (Exception,), {})))
    assert len(caplog.records) == 3


def test_foreseen_error_is_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        failure_of(InvalidRequestError("top_k", "is 0"))
    assert not caplog.records
