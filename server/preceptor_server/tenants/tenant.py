"""A tenant: a party that shares the server, with its rights, its limits and its weight. Reads no file and no key."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Right(StrEnum):
    """What a tenant may do. The values are what an access file says."""

    SCORE = "score"
    REGISTER = "register"
    """Hand over a student's tokenizer."""
    LOOK = "look"
    """Read what describes the server: teachers, queues, recorded requests."""
    UPDATE_WEIGHTS = "update_weights"
    """Replace the teacher's weights and adapters."""


ALL_BUT_UPDATE = frozenset({Right.SCORE, Right.REGISTER, Right.LOOK})


@dataclass(frozen=True, slots=True, kw_only=True)
class Tenant:
    """A party that shares the server. A limit that is None does not apply."""

    name: str
    """Bound to the key. An anonymous caller's is "peer:ADDRESS", without a port."""
    weight: float = 1.0
    """Share of a teacher beside other tenants, > 0."""
    rights: frozenset[Right] = ALL_BUT_UPDATE
    teachers: frozenset[str] | None = None
    """Names of the teachers that it may use; None = all."""
    tokens_per_second: float | None = None
    max_concurrent: int | None = None
    """Calls at once."""
    max_bytes_in_flight: int | None = None
    """Bytes of the messages of these calls."""
    max_queue_tokens: int | None = None
    """Tokens that may wait in a teacher's scheduler."""
    max_queue_bytes: int | None = None
    """Bytes that may wait in a teacher's scheduler."""
