"""Tells the log of refused calls, once and not in a loop, and counts all of them. Memory and lines are bounded."""

from __future__ import annotations

import logging
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass

logger = logging.getLogger(__name__)

_MAX_DETAIL = 200


@dataclass(slots=True, kw_only=True)
class _Told:
    """A line that was written of a peer and a reason."""

    until: float
    """By the clock: when the next line of its kind may be written."""
    num_suppressed: int = 0


class RefusalLog:
    """One line for a peer and a reason per window, with the number of those that were left out; and no more lines in
    all than `max_lines` per window."""

    def __init__(
        self,
        *,
        window_seconds: float = 60.0,
        max_lines: int = 60,
        max_kinds: int = 4096,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._window_seconds = window_seconds
        self._max_lines = max_lines
        self._max_kinds = max_kinds
        self._clock = clock
        self._told: OrderedDict[tuple[str, str], _Told] = OrderedDict()
        """By peer and reason. All windows are equally long, so that the first ends first."""
        self._counts: Counter[str] = Counter()
        self._window_ends = clock() + window_seconds
        self._num_lines = 0
        self._num_unsaid = 0
        """In this window: refusals of kinds for which there was no line left."""

    @property
    def counts(self) -> Mapping[str, int]:
        """Refusals by reason, since the start."""
        return dict(self._counts)

    def note(self, *, peer: str, reason: str, detail: str) -> None:
        """A call was refused. `peer` is a name of `peers.peer_name`; `detail` is what the caller was told."""
        self._counts[reason] += 1
        self.sweep()
        kind = (peer, reason)
        told = self._told.get(kind)
        if told is not None:
            told.num_suppressed += 1
        elif self._num_lines >= self._max_lines or len(self._told) >= self._max_kinds:
            self._num_unsaid += 1
        else:
            self._num_lines += 1
            self._told[kind] = _Told(until=self._clock() + self._window_seconds)
            logger.warning("refused peer=%s reason=%s detail=%r", peer, reason, detail[:_MAX_DETAIL])

    def sweep(self) -> None:
        """Writes what was left out in windows that have ended. `note` does it too; call it at times, and at the end."""
        now = self._clock()
        if now >= self._window_ends:
            if self._num_unsaid:
                logger.warning("refused others=%d seconds=%g", self._num_unsaid, self._window_seconds)
            self._window_ends = now + self._window_seconds
            self._num_lines = 0
            self._num_unsaid = 0
        while self._told:
            (peer, reason), told = next(iter(self._told.items()))
            if told.until > now:
                break
            del self._told[peer, reason]
            if told.num_suppressed and self._num_lines >= self._max_lines:
                self._num_unsaid += told.num_suppressed
            elif told.num_suppressed:
                self._num_lines += 1
                logger.warning(
                    "refused peer=%s reason=%s more=%d seconds=%g",
                    *(peer, reason, told.num_suppressed, self._window_seconds),
                )
                self._told[peer, reason] = _Told(until=now + self._window_seconds)
