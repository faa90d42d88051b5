"""A running estimate of how fast the engine works. Knows no queue."""

from __future__ import annotations

_SMOOTHING = 0.2
"""Weight of the newest batch."""


class Speed:
    """Cost (see `costs.py`) that gets done in a second; None before the first batch."""

    def __init__(self) -> None:
        self._per_second: float | None = None

    @property
    def per_second(self) -> float | None:
        return self._per_second

    def observe(self, cost: float, seconds: float) -> None:
        """Takes note of a batch. With several in flight: the cost of all of them, over the time that one takes."""
        if seconds <= 0 or cost <= 0:
            return
        newest = cost / seconds
        before = newest if self._per_second is None else self._per_second
        self._per_second = before + _SMOOTHING * (newest - before)

    def seconds_for(self, cost: float) -> float | None:
        """How long that takes; None where it is not known."""
        return None if self._per_second is None else cost / self._per_second
