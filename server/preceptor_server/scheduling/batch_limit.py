"""How large a batch may be: as configured, and less for a while after the engine ran out of memory. Knows no queue."""

from __future__ import annotations

import logging

logger = logging.getLogger(__name__)

_RECOVERY_SECONDS = 60.0
"""After which a lowered limit is doubled, again and again."""
_SMALLEST = 64


class BatchLimit:
    """In computed tokens. Times are those of the event loop's clock."""

    def __init__(self, max_tokens: int) -> None:
        self._max_tokens = max_tokens
        self._lowered = max_tokens
        self._raise_at = 0.0

    @property
    def configured(self) -> int:
        """What the settings say."""
        return self._max_tokens

    def tokens(self, now: float) -> int:
        """What holds at that time."""
        while self._lowered < self._max_tokens and now >= self._raise_at:
            self._lowered = min(self._max_tokens, 2 * self._lowered)
            self._raise_at += _RECOVERY_SECONDS
        return self._lowered

    def ran_out_of_memory(self, cost: float, *, now: float) -> None:
        """A batch of that cost did not fit."""
        limit = min(self.tokens(now), max(_SMALLEST, int(cost / 2)))
        self._lowered = min(limit, self._max_tokens)
        self._raise_at = now + _RECOVERY_SECONDS
        logger.warning("engine out of memory batch_tokens=%d lowered_to=%d", cost, self._lowered)
