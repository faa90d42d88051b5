"""The ids that callers named, row by row and without padding: the rows of one batch may name unlike numbers of them.

Numpy only: no model, no torch.
"""

# N = scored positions of the batch, R = rows of a chunk, C = candidates per position of a response,
# E = candidates of all rows of a batch, or of a chunk

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from preceptor.wire import PackedTokenArray, TokenArray


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CandidateRows:
    """Row n asks for the ids `ids_E[starts_N1[n] : starts_N1[n + 1]]`."""

    ids_E: npt.NDArray[np.int32]
    """As they travel: as int64 all of them would be twice as large."""
    starts_N1: npt.NDArray[np.int64]

    def of_chunk(self, start: int, stop: int) -> tuple[npt.NDArray[np.int64], TokenArray]:
        """For every candidate of the rows [start, stop): its row, counted from `start`, and its id; both [E]."""
        starts_R1 = self.starts_N1[start : stop + 1]
        counts_R = np.diff(starts_R1)
        return np.repeat(np.arange(len(counts_R)), counts_R), self.ids_E[starts_R1[0] : starts_R1[-1]].astype(np.int64)


def join_candidates(blocks: Sequence[PackedTokenArray | None], *, nums_rows: Sequence[int]) -> CandidateRows | None:
    """The [rows, C] blocks of a batch's responses, in order; None where no response names any. `nums_rows` holds the
    rows of each response, also of those without a block."""
    named = [block for block in blocks if block is not None]
    if not named:
        return None
    widths = [0 if block is None else block.shape[1] for block in blocks]
    counts_N = np.repeat(np.array(widths, np.int64), nums_rows)
    return CandidateRows(
        ids_E=np.concatenate([block.ravel() for block in named], dtype=np.int32, casting="unsafe"),
        starts_N1=np.concatenate([[0], np.cumsum(counts_N)]),
    )
