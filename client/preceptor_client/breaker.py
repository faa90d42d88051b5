"""Circuit breaker of one server: once it fails again and again, one call at a time finds out whether it is back.

    closed      calls pass; failures in a row are counted
    open        nobody passes until the cooling time is over
    half-open   one call passes, the probe; its answer closes the breaker, its failure opens it for longer

A server that answers, if only to refuse, is there. Makes no calls, and knows nothing of what failed.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from preceptor_client.retry import RetryPolicy
from preceptor_client.status import Failure

FAILURES_TO_OPEN = 5


class RestingError(Exception):
    """The breaker is open, and the call does not wait."""

    def __init__(self, failure: Failure, *, seconds: float) -> None:
        super().__init__(f"it rests for {seconds:.1f} s")
        self.failure = failure
        """Why it opened."""
        self.seconds = seconds


@dataclass(slots=True, eq=False)
class Passage:
    """One call that passed; says how it ended, unless it was given up."""

    breaker: CircuitBreaker
    is_probe: bool

    def answered(self) -> None:
        """The server is there."""
        self.breaker.close()

    def failed(self, failure: Failure) -> None:
        """The server gave no answer."""
        self.breaker.count(failure, is_probe=self.is_probe)


class CircuitBreaker:
    """Belongs to the event loop that first waits at it."""

    def __init__(self, policy: RetryPolicy, *, failures_to_open: int = FAILURES_TO_OPEN) -> None:
        """Cools down as long as `policy` waits between attempts: longer after each failed probe."""
        self._policy = policy
        self._failures_to_open = failures_to_open
        self._num_failures = 0
        """In a row, while closed."""
        self._num_probes = 0
        """Failed since it opened."""
        self._failure: Failure | None = None
        self._opens_at = 0.0
        self._has_probe = False
        self._changed = asyncio.Event()

    @property
    def failure(self) -> Failure | None:
        """Why it is open; None while closed."""
        return self._failure

    @property
    def is_open(self) -> bool:
        """Whether calls wait, or are turned away; half-open counts."""
        return self._failure is not None

    @asynccontextmanager
    async def passage(self, *, is_patient: bool) -> AsyncIterator[Passage]:
        """Waits until the call may pass, and lets the next probe go if it ends without a word. Raises RestingError
        where a call that is not patient would have to wait."""
        while self._failure is not None and (self._has_probe or self._cooling_seconds() > 0):
            if not is_patient:
                raise RestingError(self._failure, seconds=self._cooling_seconds())
            await self._wait()
        passage = Passage(self, is_probe=self.is_open)
        self._has_probe = self._has_probe or passage.is_probe
        try:
            yield passage
        finally:
            if passage.is_probe:
                self._has_probe = False
                self._wake()

    def close(self) -> None:
        """Lets everybody pass."""
        self._num_failures = self._num_probes = 0
        if self._failure is not None:
            self._failure = None
            self._wake()

    def count(self, failure: Failure, *, is_probe: bool) -> None:
        """Opens after enough of them, and stays open after a probe's. Failures of calls that passed before it opened
        say nothing new."""
        if self._failure is not None and not is_probe:
            return
        self._num_failures += 1
        if self._num_failures < self._failures_to_open:
            return
        self._num_probes += 1
        self._failure = failure
        cooling = self._policy.delay_seconds(self._num_probes, at_least=failure.retry_after_seconds)
        self._opens_at = time.monotonic() + cooling

    def _cooling_seconds(self) -> float:
        return max(0.0, self._opens_at - time.monotonic())

    async def _wait(self) -> None:
        """Until something changes, or the next probe may go."""
        self._changed.clear()
        seconds = None if self._has_probe else self._cooling_seconds()
        try:
            async with asyncio.timeout(seconds):
                await self._changed.wait()
        except TimeoutError:
            return

    def _wake(self) -> None:
        self._changed.set()
