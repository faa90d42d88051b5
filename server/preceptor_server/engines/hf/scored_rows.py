"""The scored positions of a batch, in its order: what is asked about each. Numpy only: no model, no torch."""

# N = scored positions of the batch

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from preceptor.wire import TokenArray

from preceptor_server.engines.candidates import CandidateRows, join_candidates
from preceptor_server.types import ScoreGroup


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ScoredRows:
    """Row n predicts the token `sampled_ids_N[n]` of a response of the group `group_of_row_N[n]`."""

    sampled_ids_N: TokenArray
    group_of_row_N: npt.NDArray[np.int64]
    candidates: CandidateRows | None
    """None where no response of the batch names any."""


def scored_rows(batch: Sequence[ScoreGroup]) -> ScoredRows:
    """Those of all responses, in the batch's order."""
    responses = [(index, response) for index, group in enumerate(batch) for response in group.responses]
    nums_rows = [int(response.score_mask_T.sum()) for _, response in responses]
    blocks = [
        None if response.candidate_ids_TC is None else response.candidate_ids_TC[response.score_mask_T]
        for _, response in responses
    ]
    return ScoredRows(
        sampled_ids_N=np.concatenate([response.ids_T[response.score_mask_T] for _, response in responses]),
        group_of_row_N=np.repeat([index for index, _ in responses], nums_rows),
        candidates=join_candidates(blocks, nums_rows=nums_rows),
    )
