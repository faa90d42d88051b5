"""A heap of which entries can be taken out, or ranked anew, in O(log n): stale records are skipped, and swept."""

from __future__ import annotations

import heapq
from typing import Generic, TypeVar

Rank = tuple[float, float, int]
"""Compared from left to right."""

_MIN_SWEPT = 64

ItemT = TypeVar("ItemT")


class LazyHeap(Generic[ItemT]):
    """Items by rank, lowest first. An item is itself and no other (`eq=False`), and stands here at most once."""

    def __init__(self) -> None:
        self._heap: list[tuple[Rank, int, ItemT]] = []
        self._versions: dict[ItemT, int] = {}
        """Of the records that count."""
        self._num_records = 0

    def __len__(self) -> int:
        return len(self._versions)

    def __contains__(self, item: ItemT) -> bool:
        return item in self._versions

    def put(self, item: ItemT, rank: Rank) -> None:
        """Adds it; where it stands here already its rank is replaced."""
        self._num_records += 1
        self._versions[item] = self._num_records
        heapq.heappush(self._heap, (rank, self._num_records, item))
        if len(self._heap) > 2 * len(self._versions) + _MIN_SWEPT:
            self._sweep()

    def discard(self, item: ItemT) -> bool:
        """Takes it out; False where it is not here."""
        if self._versions.pop(item, None) is None:
            return False
        if not self._versions:
            self._heap.clear()
        return True

    def first(self) -> ItemT | None:
        """The item of the lowest rank."""
        while self._heap:
            _, version, item = self._heap[0]
            if self._versions.get(item) == version:
                return item
            heapq.heappop(self._heap)
        return None

    def _sweep(self) -> None:
        """Amortised over as many changes as there are items."""
        self._heap = [record for record in self._heap if self._versions.get(record[2]) == record[1]]
        heapq.heapify(self._heap)
