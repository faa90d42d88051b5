"""A clock that tests turn."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta


class Clock:
    """Says the seconds that it is told."""

    def __init__(self, seconds: float = 1000.0) -> None:
        self.seconds = seconds

    def __call__(self) -> float:
        return self.seconds

    def now(self) -> datetime:
        """The same as a moment."""
        return datetime(2030, 1, 1, tzinfo=UTC) + timedelta(seconds=self.seconds)
