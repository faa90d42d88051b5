"""Who pays for a call: a tenant, its rights and its limits. Knows no keys and no transports."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Right(StrEnum):
    """What a tenant may do."""

    SCORE = "score"
    REGISTER = "register"
    LOOK = "look"
    UPDATE_WEIGHTS = "update_weights"


ALL_BUT_UPDATE = frozenset({Right.SCORE, Right.REGISTER, Right.LOOK})


@dataclass(frozen=True, slots=True, kw_only=True)
class Tenant:
    """A team that shares the server with others."""

    name: str
    """Bound to the key. Of an anonymous caller "peer:ADDRESS", without the port."""
    weight: float = 1.0
    """Share of a teacher beside other tenants, above 0."""
    rights: frozenset[Right] = ALL_BUT_UPDATE
    teachers: frozenset[str] | None = None
    """Names of the teachers it may use. None: all."""
    tokens_per_second: float | None = None
    max_concurrent: int | None = None
    """Calls at once."""
    max_bytes_in_flight: int | None = None
    max_queue_tokens: int | None = None
    """Of what waits in a scheduler."""
    max_queue_bytes: int | None = None
    """Of what waits in a scheduler."""
