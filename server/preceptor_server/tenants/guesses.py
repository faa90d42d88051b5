"""Slows down whoever tries keys: after some wrong ones from a peer the next wrong ones are told to come back later.

A secret holds 256 bits, so nobody finds one by trying; this keeps the attempts, and what is logged of them, few. A
right key always works, so that a stranger behind the same address stops nobody's training.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable

from preceptor_server.errors import QuotaExceededError

TOO_MANY_WRONG_KEYS = "TOO_MANY_WRONG_KEYS"


class KeyGuesses:
    """Counts wrong keys by peer, in memory that is bounded by `max_peers`."""

    def __init__(
        self,
        *,
        max_wrong: int = 10,
        seconds_each: float = 6.0,
        max_peers: int = 4096,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`max_wrong` at once, and one more every `seconds_each`."""
        self._max_wrong = max_wrong
        self._seconds_each = seconds_each
        self._max_peers = max_peers
        self._clock = clock
        self._forgiven_at: OrderedDict[str, float] = OrderedDict()
        """Of each peer: when all its wrong keys are forgiven. Those that were wrong last stand last."""

    def wrong(self, peer: str) -> None:
        """Takes note of a wrong key. Raises QuotaExceededError where there were too many."""
        self._refuse_if_too_many(peer)
        self._forgiven_at[peer] = max(self._clock(), self._forgiven_at.get(peer, 0.0)) + self._seconds_each
        self._forgiven_at.move_to_end(peer)
        if len(self._forgiven_at) > self._max_peers:
            self._forgiven_at.popitem(last=False)

    def _refuse_if_too_many(self, peer: str) -> None:
        """Each wrong key is forgiven `seconds_each` after the one before it."""
        unforgiven_seconds = self._forgiven_at.get(peer, 0.0) - self._clock()
        delay = unforgiven_seconds - (self._max_wrong - 1) * self._seconds_each
        if delay > 0:
            raise QuotaExceededError(
                f"too many wrong keys from {peer}: come back in {delay:.0f} s, with the right one",
                reason=TOO_MANY_WRONG_KEYS,
                retry_after_seconds=delay,
            )
