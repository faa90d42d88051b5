"""Decides, before anything is computed, which groups share a forward and how a large one is cut, so that all fits.

What it decides for a group alone depends on the group and on the settings, never on what else is there.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence

from preceptor_server.engines.hf.forwards import Forwards
from preceptor_server.engines.hf.memory import ForwardSize, ModelShape, body_bytes, column_bytes, head_bytes
from preceptor_server.engines.hf.steps import Steps
from preceptor_server.errors import EngineOutOfMemoryError
from preceptor_server.types import ScoreGroup

logger = logging.getLogger(__name__)

_SHARE_OF_HEAD = 4
"""The head's chunk takes at most one in so many of the bytes of a forward."""
_TYPICAL_TOP_K = 64
_LEAST_COST = 64.0
"""Of a slice, in tokens without context: with fewer, the weights are read for next to nothing."""


class MemoryPlan:
    """For one model, and one bound of the bytes of a forward."""

    def __init__(self, shape: ModelShape, *, max_bytes: int, rows_per_head_chunk: int) -> None:
        self._shape = shape
        self.max_bytes = max_bytes
        self.rows_per_chunk = _fitting_rows(shape, rows_per_head_chunk, max_bytes // _SHARE_OF_HEAD)

    def batches(self, batch: Sequence[ScoreGroup], forwards: Forwards) -> Iterator[list[ScoreGroup]]:
        """`batch` in order, in pieces that fit; a group that does not fit by itself stands alone."""
        if len(batch) > 1 and self.batch_bytes(batch, forwards) > self.max_bytes:
            half = len(batch) // 2
            yield from self.batches(batch[:half], forwards)
            yield from self.batches(batch[half:], forwards)
        else:
            yield list(batch)

    def batch_bytes(self, batch: Sequence[ScoreGroup], forwards: Forwards) -> int:
        """Of the body, or else of the head, over all groups at once, and of their answer:

        max(body, rows + head) + columns
        """
        sizes = forwards.sizes(batch)
        rows = sum(size.num_rows for size in sizes) * self._shape.hidden * self._shape.dtype_bytes
        body = max(body_bytes(self._shape, size) for size in sizes)
        if len(sizes) > 1:
            body += 2 * rows  # those of all forwards, and again while they are joined
        return max(body, rows + max(map(self._head_bytes, batch))) + sum(map(_column_bytes, batch))

    def steps(
        self, group: ScoreGroup, ways: Sequence[Callable[[float], Steps]], *, max_cost: float
    ) -> tuple[Steps, int]:
        """The steps of `group` by the first of the ways that fits, each of at most `max_cost` or of as much as fits;
        and the bytes that are held between them. Raises EngineOutOfMemoryError."""
        least = 0
        for way in ways:
            cost = max_cost
            while True:
                steps = way(cost)
                held = self._shape.kept_bytes_per_token * steps.num_kept_tokens + _column_bytes(group)
                needed = max(held, max(map(self._step_bytes, steps.sizes())) + self._head_bytes(group))
                if needed <= self.max_bytes:
                    if cost != max_cost:
                        logger.warning("slices that cost %.0f tokens instead of %.0f, for memory", cost, max_cost)
                    return steps, held
                least = min(least or needed, needed)
                if cost <= _LEAST_COST or held > self.max_bytes:
                    break
                cost = max(_LEAST_COST, cost / 2)
        raise EngineOutOfMemoryError(
            f"a group of {group.num_tokens} tokens takes about {least} bytes at once, and "
            f"engine.max_batch_bytes={self.max_bytes}: raise it, or send fewer tokens at once"
        )

    def _step_bytes(self, size: ForwardSize) -> int:
        return body_bytes(self._shape, size)

    def _head_bytes(self, group: ScoreGroup) -> int:
        widths = [0 if one.candidate_ids_TC is None else one.candidate_ids_TC.shape[1] for one in group.responses]
        rows = min(self.rows_per_chunk, sum(len(one.ids_T) for one in group.responses))
        return head_bytes(
            self._shape, rows_per_chunk=rows, top_k=group.top_k, num_candidates=rows * max(widths, default=0)
        )


def _fitting_rows(shape: ModelShape, rows: int, max_bytes: int) -> int:
    while rows > 1 and head_bytes(shape, rows_per_chunk=rows, top_k=_TYPICAL_TOP_K) > max_bytes:
        rows //= 2
    return rows


def _column_bytes(group: ScoreGroup) -> int:
    num_rows = sum(int(one.score_mask_T.sum()) for one in group.responses)
    num_candidates = sum(
        0 if one.candidate_ids_TC is None else int(one.score_mask_T.sum()) * one.candidate_ids_TC.shape[1]
        for one in group.responses
    )
    return column_bytes(num_rows=num_rows, top_k=group.top_k, num_candidates=num_candidates)
