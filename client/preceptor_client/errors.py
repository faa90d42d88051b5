"""What can go wrong for a caller of the teacher.

PreceptorError
├── InvalidRequestError (also ValueError)      the server refused the request; `field` and `reason` say why
├── AccessDeniedError                          no key, a wrong one, or a right that is missing
├── NotImplementedByServerError                the server knows the request and does not do this yet
├── TeacherUnavailableError (also ConnectionError)   no answer within the deadline, after every retry
├── MessageTooLargeError (also ValueError)     request or answer beyond the message limit
├── NotInCacheError                            offline, and the score cache lacks what was asked
├── GroupFailedError                           the teacher failed on this one group; others may well succeed
├── CorruptAnswerError                         the answer does not prove that it scored what was sent
└── ReplicasDifferError (also ValueError)      servers that were named as one teacher host different ones
"""

from __future__ import annotations


class PreceptorError(Exception):
    """Anything that this library raises on purpose."""


class InvalidRequestError(PreceptorError, ValueError):
    """The server refused the request. Sending it again will not help."""

    def __init__(self, message: str, *, field: str = "", reason: str = "") -> None:
        super().__init__(message)
        self.field = field
        self.reason = reason


class AccessDeniedError(PreceptorError):
    """The server does not know this caller, or does not let it do this. Asking again with this key will not help."""

    def __init__(self, message: str, *, reason: str = "") -> None:
        super().__init__(message)
        self.reason = reason
        """UPPER_SNAKE_CASE, such as NO_KEY, EXPIRED_KEY or TEACHER_NOT_ALLOWED; empty where a proxy refused."""


class NotImplementedByServerError(PreceptorError):
    """The server understood the request and does not do this yet."""


class TeacherUnavailableError(PreceptorError, ConnectionError):
    """No answer within the deadline: unreachable, overloaded, or too slow. Asking later may help."""

    def __init__(self, message: str, *, code: str = "", retry_after_seconds: float = 0.0) -> None:
        super().__init__(message)
        self.code = code
        """Of the last attempt: the name of its gRPC code, such as "UNAVAILABLE"; over HTTP its status, such as "503",
        or nothing where there was no answer."""
        self.retry_after_seconds = retry_after_seconds
        """The server asks to wait at least this long."""


class MessageTooLargeError(PreceptorError, ValueError):
    """Request or answer is larger than a message may be; the message says what to send less of, or which limit to
    raise."""


class GroupFailedError(PreceptorError):
    """The teacher failed while it worked on this group. Sending the same group again is likely to fail again; other
    groups are not concerned."""

    def __init__(self, message: str, *, reason: str = "", incident: str = "") -> None:
        super().__init__(message)
        self.reason = reason
        """What the server calls it, such as "BAD_GROUP"."""
        self.incident = incident
        """What stands beside the cause in the server's log: its id there, or else the server's own message."""


class NotInCacheError(PreceptorError):
    """A score cache in the mode "offline" lacks what was asked, and no server may be asked for it."""


class CorruptAnswerError(PreceptorError):
    """Digest, shape, order or mass of an answer is wrong, or it contradicts what was asked or said before: none of its
    numbers may reach a loss."""


class ReplicasDifferError(PreceptorError, ValueError):
    """Addresses that were given as replicas of one teacher belong to different ones; the message names both and the
    field in which they differ."""
