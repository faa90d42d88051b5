"""The refusal of a prompt that does not fit, the same whichever way that became certain. Imports no library."""

from __future__ import annotations

from preceptor_server.errors import InvalidRequestError


def too_long(field: str, room_tokens: int) -> InvalidRequestError:
    """What a prompt is told that does not fit, whichever way that became certain."""
    return InvalidRequestError(
        field,
        f"has more of the teacher's tokens than the {room_tokens} that there is room for: shorten it",
        reason="BEYOND_CONTEXT",
    )
