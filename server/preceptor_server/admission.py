"""Decides whether a group may wait at all, and when to come back if not. Keeps memory bounded under overload."""

from __future__ import annotations

from preceptor_server.errors import QueueFullError

_SMOOTHING = 0.2
"""Weight of the newest batch in the running estimate of speed."""
_MIN_RETRY_SECONDS = 0.1
_MAX_RETRY_SECONDS = 30.0


class Admission:
    """A bound on the tokens that wait, and a running estimate of how fast they go."""

    def __init__(self, *, max_queue_tokens: int) -> None:
        self._max_queue_tokens = max_queue_tokens
        self._tokens_per_second = 0.0

    def admit(self, num_tokens: int, *, num_waiting_tokens: int) -> None:
        """Raises QueueFullError where the queue would grow beyond its bound."""
        if num_waiting_tokens + num_tokens <= self._max_queue_tokens:
            return
        raise QueueFullError(
            f"{num_waiting_tokens} tokens wait already and {num_tokens} more would pass the server's "
            f"max_queue_tokens={self._max_queue_tokens}",
            retry_after_seconds=self._seconds_for(num_tokens),
        )

    def observe(self, num_tokens: int, seconds: float) -> None:
        """Takes note of a batch."""
        if seconds <= 0:
            return
        newest = num_tokens / seconds
        if self._tokens_per_second == 0:
            self._tokens_per_second = newest
        self._tokens_per_second += _SMOOTHING * (newest - self._tokens_per_second)

    def _seconds_for(self, num_tokens: int) -> float:
        if self._tokens_per_second == 0:
            return 1.0
        return min(max(num_tokens / self._tokens_per_second, _MIN_RETRY_SECONDS), _MAX_RETRY_SECONDS)
