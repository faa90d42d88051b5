"""Repeats an attempt that failed for a passing reason, until a deadline. Knows nothing of what is asked or answered."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

import grpc

from preceptor_client.errors import TeacherUnavailableError
from preceptor_client.status import Failure, exception_for, read_failure

AnswerT = TypeVar("AnswerT")

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


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryingCall:
    """One call and the rules by which it is repeated."""

    address: str
    policy: RetryPolicy
    timeout_seconds: float
    """Over all attempts and the waits between them."""
    attempt_timeout_seconds: float | None
    max_message_bytes: int
    request_bytes: int
    smaller: str
    """How to make the message smaller, for one that is too large."""
    on_retry: Callable[[RetryEvent], None] | None
    cure: Cure | None = None
    """Asked about a failure that waiting does not mend."""
    only_unavailable: bool = False
    """Repeat nothing but what found nobody."""
    is_patient: bool = True
    """Whether to wait and repeat; if not, the first passing failure is raised, for one who knows whom else to ask."""

    async def run(self, attempt_once: Callable[[float], Awaitable[AnswerT]]) -> AnswerT:
        """Awaits `attempt_once(seconds)` until it succeeds, fails for good, or the deadline has passed."""
        started = time.monotonic()
        attempt = 0
        while True:
            attempt += 1
            attempt_started = time.monotonic()
            granted = self._grant(self.timeout_seconds - (attempt_started - started))
            try:
                return await attempt_once(granted)
            except grpc.aio.AioRpcError as error:
                failure = read_failure(error)
            now = time.monotonic()
            if not self._may_repeat(failure, attempt_seconds=now - attempt_started):
                done = await self.cure(failure, self.timeout_seconds - (now - started)) if self.cure else None
                now = time.monotonic()
                if done is None:
                    raise self._final_error(failure, attempts=attempt, elapsed=now - started)
                self._tell(failure, attempt=attempt, elapsed=now - started, delay=0.0, done=f": {done}")
                continue
            delay = self.policy.delay_seconds(attempt, at_least=failure.retry_after_seconds)
            if not self.is_patient or now - started + delay >= self.timeout_seconds:
                raise self._gave_up(failure, attempts=attempt, elapsed=now - started)
            self._tell(failure, attempt=attempt, elapsed=now - started, delay=delay)
            await asyncio.sleep(delay)

    def _grant(self, remaining: float) -> float:
        attempt_timeout = remaining if self.attempt_timeout_seconds is None else self.attempt_timeout_seconds
        return max(0.0, min(remaining, attempt_timeout))

    def _may_repeat(self, failure: Failure, *, attempt_seconds: float) -> bool:
        if self.only_unavailable:
            return failure.code is grpc.StatusCode.UNAVAILABLE
        # An attempt that this client itself cut short says nothing about the call's own deadline.
        is_cut_here = self.attempt_timeout_seconds is not None and attempt_seconds >= self.attempt_timeout_seconds
        is_timeout = failure.code is grpc.StatusCode.DEADLINE_EXCEEDED
        return failure.is_transient or (is_timeout and is_cut_here)

    def _final_error(self, failure: Failure, *, attempts: int, elapsed: float) -> Exception:
        if failure.code is grpc.StatusCode.DEADLINE_EXCEEDED:
            return self._gave_up(failure, attempts=attempts, elapsed=elapsed)
        return exception_for(
            failure,
            address=self.address,
            request_bytes=self.request_bytes,
            max_message_bytes=self.max_message_bytes,
            smaller=self.smaller,
        )

    def _gave_up(self, failure: Failure, *, attempts: int, elapsed: float) -> TeacherUnavailableError:
        return TeacherUnavailableError(
            f"teacher {self.address} gave no answer: waited {elapsed:.1f} s of at most {self.timeout_seconds:g} s, "
            f"{attempts} attempt(s), the last one failed with {failure}",
            code=failure.code.name,
            retry_after_seconds=failure.retry_after_seconds,
        )

    def _tell(self, failure: Failure, *, attempt: int, elapsed: float, delay: float, done: str = "") -> None:
        if self.on_retry is not None:
            self.on_retry(
                RetryEvent(
                    attempt=attempt,
                    elapsed_seconds=elapsed,
                    next_delay_seconds=delay,
                    code=failure.code.name,
                    message=failure.message + done,
                    address=self.address,
                )
            )
