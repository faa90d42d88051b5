"""What can go wrong in the server, without gRPC. status.py maps each class to a canonical code.

ServerError
├── InvalidRequestError (also ValueError)   the caller's mistake; `field` names what to change
│   ├── UnknownTeacherError                 no teacher, or adapter, of that name
│   ├── UnknownTokenizerError               no tokenizer of that id: it has to be handed over (again)
│   └── InvalidTokenizerError               a tokenizer that was handed over and cannot be used
├── NotYetImplementedError                  a field that this server understands and does not honour
├── UnauthenticatedError                    no key, an unknown one, or one that has expired
├── ForbiddenError                          the key lacks a right, or may not use that teacher
├── QuotaExceededError                      the tenant has used up its share; `retry_after_seconds` as below
├── QueueFullError                          overload; `retry_after_seconds` says when to come back
├── DeadlinePassedError                     the caller's deadline passed while its group waited
├── EngineFailedError                       the model raised; the cause is logged here, not told to the caller
│   └── BadGroupError                       the model raises for this group; `incident` finds the cause in the log
├── EngineOutOfMemoryError                  what one forward needs is more than there is
├── EngineUnavailableError                  there is no engine just now; `retry_after_seconds` says when to come back
│   ├── EngineDiedError                     the process behind the engine ended while it scored
│   └── DrainingError                       the server is being stopped: another replica may take the group
├── WeightUpdateError                       new weights that cannot be used; the old ones go on serving
└── StartupError                            the server cannot start as configured; the message names the setting
"""

from __future__ import annotations

INTERNAL = "INTERNAL"
"""The reason of an error that nobody foresaw."""


class ServerError(Exception):
    """Anything that the server raises on purpose."""

    reason = "SERVER_ERROR"
    is_outcome = False
    """Whether observers were told of it as the outcome of a call that reached scoring."""


class InvalidRequestError(ServerError, ValueError):
    """A request that cannot be served as it is."""

    def __init__(self, field: str, message: str, *, reason: str = "INVALID_FIELD") -> None:
        super().__init__(f"{field}: {message}")
        self.field = field
        self.reason = reason


class UnknownTeacherError(InvalidRequestError):
    """A name that no teacher here has."""


class UnknownTokenizerError(InvalidRequestError):
    """A tokenizer id that is not registered here: never was, or not since the start, or pushed out by others."""

    def __init__(self, message: str) -> None:
        super().__init__("tokenizer_id", message, reason="UNKNOWN_TOKENIZER")


class InvalidTokenizerError(InvalidRequestError):
    """A tokenizer that cannot be used; the message says why and what to change."""

    def __init__(self, message: str, *, reason: str = "INVALID_TOKENIZER", field: str = "tokenizer_json") -> None:
        super().__init__(field, message, reason=reason)


class NotYetImplementedError(ServerError):
    """A request that a later version of this server may honour; it is never ignored in silence."""

    reason = "NOT_IMPLEMENTED"

    def __init__(self, field: str, message: str) -> None:
        super().__init__(f"{field}: {message}")
        self.field = field


class UnauthenticatedError(ServerError):
    """It is not known who asks. Reasons: NO_KEY, UNKNOWN_KEY, EXPIRED_KEY."""

    def __init__(self, message: str, *, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


class ForbiddenError(ServerError):
    """Who asks may not do that. Reasons: MISSING_RIGHT, TEACHER_NOT_ALLOWED."""

    def __init__(self, message: str, *, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


class QuotaExceededError(ServerError):
    """The tenant has used up its share. Reasons: TOO_MANY_CALLS, TOO_MANY_BYTES, RATE_LIMITED."""

    def __init__(self, message: str, *, reason: str, retry_after_seconds: float) -> None:
        super().__init__(message)
        self.reason = reason
        self.retry_after_seconds = retry_after_seconds


class QueueFullError(ServerError):
    """Too much waits already."""

    reason = "QUEUE_FULL"

    def __init__(self, message: str, *, retry_after_seconds: float) -> None:
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds


class DeadlinePassedError(ServerError):
    """Nobody waits for this answer any more."""

    reason = "DEADLINE_PASSED"


class EngineFailedError(ServerError):
    """The model raised."""

    reason = "ENGINE_FAILED"


class BadGroupError(EngineFailedError):
    """The model raises for this group, and not for others. `incident` stands in the log beside the cause.

    Reasons: BAD_GROUP, and GROUP_TOO_LARGE where its forward needs more memory than there is.
    """

    reason = "BAD_GROUP"

    def __init__(self, message: str, *, incident: str, reason: str = "BAD_GROUP") -> None:
        super().__init__(message)
        self.incident = incident
        self.reason = reason


class EngineOutOfMemoryError(ServerError):
    """One forward needs more memory than there is; fewer groups at once, or a smaller one, may fit."""

    reason = "ENGINE_OUT_OF_MEMORY"


class EngineUnavailableError(ServerError):
    """There is no engine to ask just now; it is being started again."""

    reason = "ENGINE_UNAVAILABLE"

    def __init__(self, message: str, *, retry_after_seconds: float) -> None:
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds


class EngineDiedError(EngineUnavailableError):
    """The process behind the engine ended while it scored: what was in flight is lost, and may be asked again."""

    reason = "ENGINE_DIED"


class DrainingError(EngineUnavailableError):
    """The server is being stopped and takes nothing new. The group was not answered: it may be sent elsewhere."""

    reason = "DRAINING"

    def __init__(self, *, retry_after_seconds: float) -> None:
        super().__init__("the server is being stopped: ask another", retry_after_seconds=retry_after_seconds)


class WeightUpdateError(ServerError):
    """New weights, or a new adapter, that cannot be used; the old ones go on serving."""

    def __init__(self, field: str, message: str, *, reason: str = "WEIGHT_UPDATE_FAILED") -> None:
        super().__init__(f"{field}: {message}")
        self.field = field
        self.reason = reason


class StartupError(ServerError):
    """The server cannot start as configured."""

    reason = "STARTUP"


def said(error: BaseException) -> str:
    """What a foreign error says, with its type where that alone would not be understood (KeyError: 'x')."""
    return str(error) if isinstance(error, OSError | ValueError) else f"{type(error).__name__}: {error}"


def reason_of(error: BaseException) -> str:
    """The reason that a caller is told, and that is counted."""
    return error.reason if isinstance(error, ServerError) else INTERNAL
