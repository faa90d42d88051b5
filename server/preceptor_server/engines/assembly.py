"""Cuts the columns of a batch's rows back into groups and responses, in numpy. Knows nothing of models."""

# N = scored positions, R = rows of a chunk, K = support size, C = candidates per position, E = candidates of all rows

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
    """Takes chunks in row order; returns one GroupColumns per group of the batch."""

    def __init__(self, batch: Sequence[ScoreGroup]) -> None:
        self._batch = batch
        self._chunks: list[RowColumns] = []
        self._candidates: list[LogprobArray] = [np.zeros(0, np.float32)]

    def add(self, chunk: ChunkColumns) -> None:
        self._chunks.append({name: getattr(chunk, name).cpu().numpy() for name in _PER_ROW})
        if chunk.candidate_logprobs_E is not None:
            self._candidates.append(chunk.candidate_logprobs_E.cpu().numpy())

    def finish(self) -> list[GroupColumns]:
        columns = {name: np.concatenate([chunk[name] for chunk in self._chunks]) for name in self._chunks[0]}
        candidates_E = np.concatenate(self._candidates)
        answers: list[GroupColumns] = []
        start = 0
        for group in self._batch:
            responses: list[ResponseColumns] = []
            for response in group.responses:
                stop = start + int(response.score_mask_T.sum())
                rows = {name: column[start:stop] for name, column in columns.items()}
                block_NC, candidates_E = _cut_candidates(response, candidates_E, num_rows=stop - start)
                responses.append(response_columns(response, rows, block_NC, group.top_k))
                start = stop
            answers.append(tuple(responses))
        return answers


def _cut_candidates(
    response: ResponseToScore, candidates_E: LogprobArray, *, num_rows: int
) -> tuple[LogprobArray | None, LogprobArray]:
    """The response's own logprobs, [N, C] or None, and those of the responses after it."""
    if response.candidate_ids_TC is None:
        return None, candidates_E
    width = response.candidate_ids_TC.shape[1]
    return candidates_E[: num_rows * width].reshape(num_rows, width), candidates_E[num_rows * width :]


def response_columns(
    response: ResponseToScore, rows: RowColumns, candidates_NC: LogprobArray | None, top_k: int
) -> ResponseColumns:
    """Drops the rows that are not finite, and says so in the status of their positions."""
    is_finite, entropies_R = rows["is_finite_R"].astype(np.bool_), rows.get("entropies_R")
    status_T: StatusArray = np.full(len(response.ids_T), PositionStatus.EXCLUDED, np.uint8)
    status_T[response.score_mask_T] = np.where(is_finite, PositionStatus.OK, PositionStatus.NON_FINITE)
    return ResponseColumns(
        status_T=status_T,
        support_ids_NK=rows["support_ids_RK"][is_finite, :top_k].astype(np.int64),
        support_logprobs_NK=rows["support_logprobs_RK"][is_finite, :top_k].astype(np.float32),
        sampled_logprobs_N=rows["sampled_logprobs_R"][is_finite].astype(np.float32),
        log_tail_mass_N=rows["log_tail_mass_R"][is_finite].astype(np.float32),
        entropies_N=None if entropies_R is None else entropies_R[is_finite].astype(np.float32),
        candidate_logprobs_NC=None if candidates_NC is None else candidates_NC[is_finite].astype(np.float32),
    )
