"""Counts what is asked, by transport: for GET /v1/stats, and to know whether gRPC callers are at work."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

from preceptor_server.observability.observer import OK, Asker, Outcome, Refusal, Transport

WINDOW_SECONDS = 10
"""Over which the throughput is taken."""
_BUSY_SECONDS = 2.0
"""How long after its last answer a transport counts as at work: a trainer's update lies in between."""


class Traffic:
    """An Observer."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._started = clock()
        self._in_flight: dict[Transport, int] = {"grpc": 0, "http": 0}
        self._last_ended: dict[Transport, float] = {}
        self._by_second: deque[tuple[int, int]] = deque()
        """Seconds of the clock, and the positions that were scored in each."""
        self.num_requests = 0
        self.num_failed = 0
        self.num_refused = 0
        self.num_positions = 0

    @property
    def uptime_seconds(self) -> float:
        return self._clock() - self._started

    @property
    def positions_per_second(self) -> float:
        """Over the last WINDOW_SECONDS, or since the start."""
        now = self._clock()
        self._forget(now)
        seconds = min(WINDOW_SECONDS, max(1.0, now - self._started))
        return sum(num_positions for _, num_positions in self._by_second) / seconds

    def is_at_work(self, transport: Transport) -> bool:
        """Whether it has asked for something lately, or waits for it."""
        ended = self._last_ended.get(transport)
        return self._in_flight[transport] > 0 or (ended is not None and self._clock() - ended < _BUSY_SECONDS)

    def began(self, caller: Asker) -> None:
        self.num_requests += 1
        self._in_flight[caller.transport] += 1

    def ended(self, outcome: Outcome) -> None:
        now = self._clock()
        self._in_flight[outcome.caller.transport] -= 1
        self._last_ended[outcome.caller.transport] = now
        self.num_failed += outcome.reason != OK
        self.num_positions += outcome.num_positions
        self._forget(now)
        second, before = self._by_second.pop() if self._by_second else (int(now), 0)
        if second != int(now):
            self._by_second.append((second, before))
            before = 0
        self._by_second.append((int(now), before + outcome.num_positions))

    def refused(self, refusal: Refusal) -> None:  # noqa: ARG002  an Observer is given it
        self.num_refused += 1

    def _forget(self, now: float) -> None:
        while self._by_second and self._by_second[0][0] <= now - WINDOW_SECONDS:
            self._by_second.popleft()
