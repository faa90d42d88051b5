"""The scored positions of a batch, in its order: what is asked about each. Numpy only: no model, no torch.

Candidates stay where the groups hold them, and are read for a few rows at a time: a group may name a thousand ids at
each of its positions, and a copy of them all would be as large as its message.
"""

# N = scored positions of the batch, T = tokens of a response, C = candidates per position of a response,
# E = candidates of a few rows

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from preceptor.wire import PackedTokenArray, TokenArray

from preceptor_server.types import ResponseToScore, ScoreGroup


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class NamedCandidates:
    """The ids that callers named for the rows of a batch: any number for each response."""

    responses: tuple[ResponseToScore, ...]
    ends: npt.NDArray[np.int64]
    """For each response, the row after its last one."""

    def of_chunk(self, start: int, stop: int) -> tuple[npt.NDArray[np.int64], TokenArray]:
        """For every candidate of the rows [start, stop): its row, counted from `start`, and its id; both [E]."""
        rows: list[npt.NDArray[np.int64]] = [np.zeros(0, np.int64)]
        ids: list[PackedTokenArray] = [np.zeros(0, np.int64)]
        index, row = int(np.searchsorted(self.ends, start, side="right")), start
        while row < stop:
            response, end = self.responses[index], min(int(self.ends[index]), stop)
            if response.candidate_ids_TC is not None and end > row:
                own = row - int(self.ends[index]) + int(response.score_mask_T.sum())
                positions = np.flatnonzero(response.score_mask_T)[own : own + end - row]
                width = response.candidate_ids_TC.shape[1]
                rows.append(np.repeat(np.arange(row - start, end - start), width))
                ids.append(response.candidate_ids_TC[positions].ravel())
            index, row = index + 1, end
        return np.concatenate(rows), np.concatenate(ids, dtype=np.int64)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ScoredRows:
    """Row n predicts the token `sampled_ids_N[n]` of a response of the group `group_of_row_N[n]`."""

    sampled_ids_N: TokenArray
    group_of_row_N: npt.NDArray[np.int64]
    candidates: NamedCandidates | None
    """None where no response of the batch names any."""


def scored_rows(batch: Sequence[ScoreGroup]) -> ScoredRows:
    """Those of all responses, in the batch's order."""
    responses = tuple(response for group in batch for response in group.responses)
    nums_rows = [int(response.score_mask_T.sum()) for response in responses]
    groups = np.repeat(np.arange(len(batch)), [len(group.responses) for group in batch])
    names_any = any(response.candidate_ids_TC is not None for response in responses)
    return ScoredRows(
        sampled_ids_N=np.concatenate([response.ids_T[response.score_mask_T] for response in responses]),
        group_of_row_N=np.repeat(groups, nums_rows),
        candidates=NamedCandidates(responses=responses, ends=np.cumsum(nums_rows)) if names_any else None,
    )
