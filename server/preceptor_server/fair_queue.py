"""Orders what waits, fairly between callers: who has been served least goes first. Knows no clocks and no models."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar


class Queued(Protocol):
    """What the queue must know of an entry."""

    @property
    def caller(self) -> str: ...

    @property
    def num_tokens(self) -> int: ...

    @property
    def rides_alone(self) -> bool: ...

    @property
    def weight(self) -> float: ...


QueuedT = TypeVar("QueuedT", bound=Queued)


class FairQueue(Generic[QueuedT]):
    """First come, first served for each caller; between callers, by tokens served so far (start-time fair queueing).

    A caller that comes back, or comes late, starts level with the least served of those who wait: idleness earns
    no credit. An entry of weight w also waits, while others do, until 1/w - 1 times its tokens were served meanwhile.
    """

    def __init__(self) -> None:
        self._waiting: OrderedDict[str, deque[QueuedT]] = OrderedDict()
        self._served: dict[str, int] = {}
        self._total_served = 0
        self._heads_since: dict[str, int] = {}
        """What was served in all when the caller's first entry became that."""
        self._num_tokens = 0

    def __len__(self) -> int:
        return sum(len(queue) for queue in self._waiting.values())

    @property
    def num_tokens(self) -> int:
        """Tokens that wait."""
        return self._num_tokens

    def push(self, entry: QueuedT) -> None:
        if entry.caller not in self._waiting:
            self._served[entry.caller] = min(self._served.values(), default=0)
            self._heads_since[entry.caller] = self._total_served
            self._waiting[entry.caller] = deque()
        self._waiting[entry.caller].append(entry)
        self._num_tokens += entry.num_tokens

    def remove(self, entry: QueuedT) -> None:
        """Takes out an entry that waits; one that does not is left alone."""
        queue = self._waiting.get(entry.caller)
        if queue is None or entry not in queue:
            return
        if queue[0] is entry:
            self._heads_since[entry.caller] = self._total_served  # what waited was that entry, not the next
        queue.remove(entry)
        self._forget(entry)

    def peek(self) -> QueuedT | None:
        """The entry that `take` would begin with; None where nothing waits."""
        return self._waiting[self._next_caller()][0] if self._waiting else None

    def take(self, max_tokens: int, *, cost: Callable[[QueuedT, QueuedT | None], int] | None = None) -> list[QueuedT]:
        """The next batch: as many entries as fit, at least one where any wait.

        `cost(entry, previous)` says what an entry takes beside the one before it in the batch, if not its tokens.
        It ends at the first entry that does not fit, so that a large one is not overtaken for ever. An entry that rides
        alone is a batch by itself.
        """
        batch: list[QueuedT] = []
        room = max_tokens
        while self._waiting:
            caller = self._next_caller()
            entry = self._waiting[caller][0]
            num_tokens = entry.num_tokens if cost is None else cost(entry, batch[-1] if batch else None)
            if batch and (num_tokens > room or entry.rides_alone):
                break
            self._waiting[caller].popleft()
            self._served[caller] += num_tokens
            self._total_served += num_tokens
            self._heads_since[caller] = self._total_served
            self._forget(entry)
            batch.append(entry)
            room -= num_tokens
            if entry.rides_alone:
                break
        return batch

    def _next_caller(self) -> str:
        return min(self._waiting, key=self._rank)

    def _rank(self, caller: str) -> tuple[float, int]:
        """Tokens that others shall still be served before the caller's first entry, then those served so far."""
        entry = self._waiting[caller][0]
        others_first = entry.num_tokens * (1 / entry.weight - 1)
        return max(0.0, others_first - (self._total_served - self._heads_since[caller])), self._served[caller]

    def _forget(self, entry: QueuedT) -> None:
        self._num_tokens -= entry.num_tokens
        if not self._waiting[entry.caller]:
            del self._waiting[entry.caller]
            del self._served[entry.caller]
            del self._heads_since[entry.caller]
