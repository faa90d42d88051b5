"""Which groups were sent, scored and used, by request id: whatever does not balance was lost, or counted twice."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal

Event = Literal["sent", "scored", "used"]
EVENTS: tuple[Event, ...] = ("sent", "scored", "used")


class LedgerWriter:
    """Appends events to a file; one of them a line."""

    def __init__(self, path: str) -> None:
        self._file: IO[str] | None = open(path, "a") if path else None  # noqa: SIM115  # as long as the process

    def note(self, event: Event, request_id: str) -> None:
        if self._file is not None:
            self._file.write(json.dumps([event, request_id]) + "\n")

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


@dataclass(frozen=True, slots=True, kw_only=True)
class Balance:
    """Of one or more ledgers."""

    num_sent: int
    num_scored: int
    num_used: int
    num_lost: int
    """Sent, and not used."""
    num_twice: int
    """Ids that were sent, scored or used more often than once."""
    num_unknown: int
    """Ids that were scored or used without having been sent."""

    @property
    def is_zero(self) -> bool:
        return self.num_lost == self.num_twice == self.num_unknown == 0


def balance(paths: Iterable[str | Path]) -> Balance:
    """A last line that was cut short, by a process that was killed, is left out."""
    counts: dict[str, Counter[str]] = {event: Counter() for event in EVENTS}
    for path in paths:
        for line in Path(path).read_text().splitlines():
            if not line.endswith("]"):
                continue
            event, request_id = json.loads(line)
            counts[event][request_id] += 1
    sent, scored, used = (counts[event] for event in EVENTS)
    return Balance(
        num_sent=len(sent),
        num_scored=len(scored),
        num_used=len(used),
        num_lost=len(sent.keys() - used.keys()),
        num_twice=len({one for counter in counts.values() for one, number in counter.items() if number > 1}),
        num_unknown=len((scored.keys() | used.keys()) - sent.keys()),
    )
