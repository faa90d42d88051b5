"""How long to wait between attempts, and what is told of a failed one. Repeats nothing itself."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from preceptor_client.status import Failure

Cure = Callable[[Failure, float], Awaitable[str | None]]
"""Tries to remove the cause of a failure within so many seconds, and returns what it did in words; None where it knows
no cure. Raises where the cure failed for good."""


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How long to wait between attempts: exponential backoff with full jitter, so that callers do not march in step."""

    initial_seconds: float = 0.2
    max_seconds: float = 5.0
    multiplier: float = 2.0

    def __post_init__(self) -> None:
        if not 0 < self.initial_seconds <= self.max_seconds:
            raise ValueError(
                f"initial_seconds={self.initial_seconds} must be above 0 and at most max_seconds={self.max_seconds}"
            )
        if self.multiplier < 1:
            raise ValueError(f"multiplier={self.multiplier} must be at least 1")

    def ceiling_seconds(self, attempt: int) -> float:
        """Longest backoff after the given attempt, which counts from 1."""
        # Capped exponent: 2.0 ** 1100 overflows, and a trainer may wait for days.
        return min(self.max_seconds, self.initial_seconds * self.multiplier ** min(attempt - 1, 64))

    def delay_seconds(self, attempt: int, *, at_least: float) -> float:
        """Backoff after the given attempt. `at_least` is what the server asked for; the jitter comes on top of it."""
        return at_least + random.uniform(0.0, self.ceiling_seconds(attempt))


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryEvent:
    """An attempt failed and another will follow; for a display such as "waiting for the teacher"."""

    attempt: int
    """The attempt that failed; counts from 1."""
    elapsed_seconds: float
    """Since the call began."""
    next_delay_seconds: float
    code: str
    """Name of the gRPC code, such as "UNAVAILABLE"."""
    message: str
    address: str
    """Who was asked."""
