"""Puts the columns of a batch's rows where their groups and responses want them, in numpy. Knows nothing of models."""

# N = scored positions of a group, R = rows of a chunk, K = support size, C = candidates per position,
# E = candidates of all rows

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from preceptor.wire import LogprobArray, PositionStatus, StatusArray

from preceptor_server.engines.columns import ChunkColumns
from preceptor_server.types import GroupColumns, ResponseColumns, ResponseToScore, ScoreGroup

RowColumns = dict[str, npt.NDArray[np.generic]]
"""Columns of the wanted rows of a response, by the names of ChunkColumns; without entropies where nobody knows them."""

_PER_ROW = tuple(name for name in ChunkColumns.__dataclass_fields__ if name != "candidate_logprobs_E")


class ColumnCollector:
    """Takes chunks in row order; returns one GroupColumns per group of the batch.

    Every column is made once, whole and in its final dtype; a response's are views of its group's.
    """

    def __init__(self, batch: Sequence[ScoreGroup]) -> None:
        self._blocks = [_GroupBlock(group) for group in batch]
        self._ends = np.cumsum([block.num_rows for block in self._blocks])
        self._num_added = 0

    def add(self, chunk: ChunkColumns) -> None:
        """The next rows."""
        rows = {name: getattr(chunk, name).cpu().numpy() for name in _PER_ROW}
        candidates_E = chunk.candidate_logprobs_E
        named_E = np.zeros(0, np.float32) if candidates_E is None else candidates_E.cpu().numpy()
        start, num_rows = 0, len(rows["is_finite_R"])
        index = int(np.searchsorted(self._ends, self._num_added, side="right"))
        while start < num_rows:
            block = self._blocks[index]
            stop = min(num_rows, start + block.num_missing)
            named_E = block.put({name: column[start:stop] for name, column in rows.items()}, named_E)
            start, index = stop, index + 1
        self._num_added += num_rows

    def finish(self) -> list[GroupColumns]:
        """After the last row."""
        return [block.finish() for block in self._blocks]


class _GroupBlock:
    """The columns of one group, as far as they have come."""

    def __init__(self, group: ScoreGroup) -> None:
        self._group = group
        nums_rows = [int(response.score_mask_T.sum()) for response in group.responses]
        self._ends = np.cumsum(nums_rows)
        self.num_rows = sum(nums_rows)
        self.num_missing = self.num_rows
        self._columns: RowColumns = {
            "is_finite_R": np.empty(self.num_rows, np.bool_),
            "support_ids_RK": np.empty((self.num_rows, group.top_k), np.int64),
            "support_logprobs_RK": np.empty((self.num_rows, group.top_k), np.float32),
            "sampled_logprobs_R": np.empty(self.num_rows, np.float32),
            "log_tail_mass_R": np.empty(self.num_rows, np.float32),
            "entropies_R": np.empty(self.num_rows, np.float32),
        }
        self._candidates: list[LogprobArray | None] = [
            None if one.candidate_ids_TC is None else np.empty((num_rows, one.candidate_ids_TC.shape[1]), np.float32)
            for one, num_rows in zip(group.responses, nums_rows, strict=True)
        ]

    def put(self, rows: RowColumns, candidates_E: LogprobArray) -> LogprobArray:
        """The next rows, and the candidates from theirs on; returns the candidates that come after theirs."""
        first = self.num_rows - self.num_missing
        stop = first + len(rows["is_finite_R"])
        for name, column in self._columns.items():
            given = rows[name]
            column[first:stop] = given[:, : self._group.top_k] if given.ndim == 2 else given
        index, row = int(np.searchsorted(self._ends, first, side="right")), first
        while row < stop:
            end = min(stop, int(self._ends[index]))
            block_NC = self._candidates[index]
            if block_NC is not None:
                own, num_own, width = row - int(self._ends[index]) + len(block_NC), end - row, block_NC.shape[1]
                block_NC[own : own + num_own] = candidates_E[: num_own * width].reshape(num_own, width)
                candidates_E = candidates_E[num_own * width :]
            index, row = index + 1, end
        self.num_missing -= stop - first
        return candidates_E

    def finish(self) -> GroupColumns:
        assert self.num_missing == 0, "every scored position has a row"
        answers: list[ResponseColumns] = []
        start = 0
        for response, stop, candidates_NC in zip(
            self._group.responses, self._ends.tolist(), self._candidates, strict=True
        ):
            rows = {name: column[start:stop] for name, column in self._columns.items()}
            answers.append(response_columns(response, rows, candidates_NC, self._group.top_k))
            start = stop
        return tuple(answers)


def response_columns(
    response: ResponseToScore, rows: RowColumns, candidates_NC: LogprobArray | None, top_k: int
) -> ResponseColumns:
    """Drops the rows that are not finite, and says so in the status of their positions. Copies nothing where all are
    finite and of the final dtype."""
    is_finite, entropies_R = rows["is_finite_R"].astype(np.bool_), rows.get("entropies_R")
    status_T: StatusArray = np.full(len(response.ids_T), PositionStatus.EXCLUDED, np.uint8)
    status_T[response.score_mask_T] = np.where(is_finite, PositionStatus.OK, PositionStatus.NON_FINITE)
    kept = slice(None) if is_finite.all() else is_finite
    return ResponseColumns(
        status_T=status_T,
        support_ids_NK=rows["support_ids_RK"][kept, :top_k].astype(np.int64, copy=False),
        support_logprobs_NK=rows["support_logprobs_RK"][kept, :top_k].astype(np.float32, copy=False),
        sampled_logprobs_N=rows["sampled_logprobs_R"][kept].astype(np.float32, copy=False),
        log_tail_mass_N=rows["log_tail_mass_R"][kept].astype(np.float32, copy=False),
        entropies_N=None if entropies_R is None else entropies_R[kept].astype(np.float32, copy=False),
        candidate_logprobs_NC=None if candidates_NC is None else candidates_NC[kept].astype(np.float32, copy=False),
    )
