"""Repeats an attempt that failed for a passing reason, until a deadline. Knows nothing of what is asked or answered."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import TypeVar

import grpc

from preceptor_client.breaker import CircuitBreaker, Passage, RestingError
from preceptor_client.errors import TeacherUnavailableError
from preceptor_client.gate import Gate
from preceptor_client.retry import Cure, RetryEvent, RetryPolicy
from preceptor_client.status import Failure, exception_for, read_failure
from preceptor_client.transport import TransportError

AnswerT = TypeVar("AnswerT")


class _AttemptError(Exception):
    """One attempt failed."""

    def __init__(self, failure: Failure, *, may_repeat: bool) -> None:
        super().__init__(str(failure))
        self.failure = failure
        self.may_repeat = may_repeat


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
    gate: Gate
    """Where the call waits for its turn; it keeps the turn while it waits to be repeated."""
    breaker: CircuitBreaker
    cure: Cure | None = None
    """Asked about a failure that waiting does not mend."""
    only_unavailable: bool = False
    """Repeat nothing but what found nobody."""
    is_patient: bool = True
    """Whether to wait and repeat; if not, the first passing failure is raised, for one who knows whom else to ask."""

    async def run(self, attempt_once: Callable[[float], Awaitable[AnswerT]]) -> AnswerT:
        """Awaits `attempt_once(seconds)` until it succeeds, fails for good, or the deadline has passed."""
        started = time.monotonic()
        async with AsyncExitStack() as stack:
            try:
                async with asyncio.timeout(self.timeout_seconds):
                    await stack.enter_async_context(self.gate.slot(self.request_bytes))
            except TimeoutError as error:
                raise self._had_no_turn() from error
            return await self._repeat(attempt_once, started=started)

    async def _repeat(self, attempt_once: Callable[[float], Awaitable[AnswerT]], *, started: float) -> AnswerT:
        attempt = 0
        failure: Failure | None = None
        while True:
            attempt += 1
            before = failure
            try:
                return await self._attempt(attempt_once, started=started, attempt=attempt)
            except _AttemptError as error:
                failure, may_repeat = error.failure, error.may_repeat
            elapsed = time.monotonic() - started
            if not may_repeat:
                done = await self.cure(failure, self.timeout_seconds - elapsed) if self.cure else None
                elapsed = time.monotonic() - started
                if done is None:
                    raise self._final_error(failure, before=before, attempts=attempt, elapsed=elapsed)
                self._tell(failure, attempt=attempt, elapsed=elapsed, delay=0.0, done=f": {done}")
                continue
            delay = self.policy.delay_seconds(attempt, at_least=failure.retry_after_seconds)
            if not self.is_patient or elapsed + delay >= self.timeout_seconds:
                raise self._gave_up(failure, attempts=attempt, elapsed=elapsed)
            self._tell(failure, attempt=attempt, elapsed=elapsed, delay=delay)
            await asyncio.sleep(delay)

    async def _attempt(
        self, attempt_once: Callable[[float], Awaitable[AnswerT]], *, started: float, attempt: int
    ) -> AnswerT:
        """Raises _AttemptError where it fails."""
        async with AsyncExitStack() as stack:
            passage = await self._passage(stack, started=started, attempt=attempt)
            remaining = max(0.0, self.timeout_seconds - (time.monotonic() - started))
            limit = self.attempt_timeout_seconds
            granted = remaining if limit is None else min(remaining, limit)
            try:
                answer = await attempt_once(granted)
            except grpc.aio.AioRpcError as error:
                failure = read_failure(error)
            except TransportError as error:
                failure = error.failure
            else:
                passage.answered()
                return answer
            may_repeat = self._may_repeat(failure, is_cut_here=granted < remaining)
            self._note(failure, passage=passage, may_repeat=may_repeat)
            raise _AttemptError(failure, may_repeat=may_repeat)

    async def _passage(self, stack: AsyncExitStack, *, started: float, attempt: int) -> Passage:
        """Waits until the breaker lets the call pass. Raises TeacherUnavailableError where it does not."""
        elapsed = time.monotonic() - started
        try:
            async with asyncio.timeout(max(0.0, self.timeout_seconds - elapsed)):
                return await stack.enter_async_context(self.breaker.passage(is_patient=self.is_patient))
        except RestingError as resting:
            raise TeacherUnavailableError(
                f"teacher {self.address} is not asked for {resting.seconds:.1f} s, since it gave no answer several "
                f"times in a row, the last time with {resting.failure}",
                code=resting.failure.code.name,
            ) from resting
        except TimeoutError as error:
            failure = self.breaker.failure
            assert failure is not None, "only an open breaker keeps a call waiting"
            elapsed = time.monotonic() - started
            raise self._gave_up(failure, attempts=attempt - 1, elapsed=elapsed) from error

    def _note(self, failure: Failure, *, passage: Passage, may_repeat: bool) -> None:
        """Tells the breaker whether the server is there. A call's own deadline says neither, unless the server itself
        says that it passed, or will."""
        is_there = not failure.is_transient or failure.code is grpc.StatusCode.RESOURCE_EXHAUSTED
        if failure.code is grpc.StatusCode.DEADLINE_EXCEEDED and not failure.is_written_by_server:
            is_there = False
            if not may_repeat:
                return
        if is_there:
            passage.answered()
        else:
            passage.failed(failure)

    def _may_repeat(self, failure: Failure, *, is_cut_here: bool) -> bool:
        """An attempt that this client itself cut short says nothing about the call's own deadline."""
        if self.only_unavailable:
            return failure.code is grpc.StatusCode.UNAVAILABLE
        is_timeout = failure.code is grpc.StatusCode.DEADLINE_EXCEEDED
        return failure.is_transient or (is_timeout and is_cut_here)

    def _final_error(self, failure: Failure, *, before: Failure | None, attempts: int, elapsed: float) -> Exception:
        if failure.code is grpc.StatusCode.DEADLINE_EXCEEDED:
            return self._gave_up(failure, before=before, attempts=attempts, elapsed=elapsed)
        return exception_for(
            failure,
            address=self.address,
            request_bytes=self.request_bytes,
            max_message_bytes=self.max_message_bytes,
            smaller=self.smaller,
        )

    def _gave_up(
        self, failure: Failure, *, attempts: int, elapsed: float, before: Failure | None = None
    ) -> TeacherUnavailableError:
        also = f", the one before it with {before}" if before else ""
        return TeacherUnavailableError(
            f"teacher {self.address} gave no answer: waited {elapsed:.1f} s of at most {self.timeout_seconds:g} s, "
            f"{attempts} attempt(s), the last one failed with {failure}{also}",
            code=failure.code.name,
            retry_after_seconds=failure.retry_after_seconds,
        )

    def _had_no_turn(self) -> TeacherUnavailableError:
        return TeacherUnavailableError(
            f"teacher {self.address} was not asked: {self.gate.num_calls} calls of this client, {self.gate.num_bytes} "
            f"bytes, were under way there for {self.timeout_seconds:g} s (max_concurrent_calls={self.gate.max_calls}, "
            f"max_bytes_in_flight={self.gate.max_bytes}): submit less at once, or wait longer",
            code=grpc.StatusCode.DEADLINE_EXCEEDED.name,
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
