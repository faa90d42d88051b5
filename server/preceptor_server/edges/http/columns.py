"""The columns of one response as they are shown, with what the call says about them. Knows no JSON."""

# T = tokens of a response, N = its scored positions, K = support size, C = candidates per position, M = tokens of the
# teacher

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from preceptor.wire import LogprobArray, LogprobDtype, PositionStatus, StatusArray, TokenArray

from preceptor_server.calls import AskedResponse, ScoreCall, ScoredCall, ScoredResponse
from preceptor_server.serving import Notes

Column = npt.NDArray[Any]  # Any: each column has a dtype of its own


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ResponseView:
    """One response and its scores."""

    ids_T: TokenArray
    status_T: StatusArray
    student_logprobs_T: tuple[float, ...] | None
    teacher_ids_M: TokenArray | None
    unmapped_mass: float
    digest: str
    rows: dict[str, Column | None]
    """Columns of N rows by the names that they have in an answer."""

    @property
    def num_rows(self) -> int:
        return len(self.rows["log_tail_mass"]) if self.rows["log_tail_mass"] is not None else 0


def view_of(call: ScoreCall, scored: ScoredCall, notes: Notes) -> list[ResponseView]:
    """One per response. `scored` is without the placeholder token, where there is one."""
    logprobs = notes.student_logprobs or (None,) * len(scored.responses)
    return [
        _view(asked, response, scored.logprob_dtype, is_next=notes.is_next, student_logprobs_T=student_logprobs_T)
        for asked, response, student_logprobs_T in zip(call.responses, scored.responses, logprobs, strict=True)
    ]


def _view(
    asked: AskedResponse,
    response: ScoredResponse,
    dtype: LogprobDtype,
    *,
    is_next: bool,
    student_logprobs_T: tuple[float, ...] | None,
) -> ResponseView:
    columns = response.columns
    ids_T = np.zeros(0, np.int64) if is_next else asked.ids_T
    num_rows = response.num_positions
    positions_N = np.arange(num_rows) if is_next else np.flatnonzero(columns.status_T == PositionStatus.OK)
    support_ids_NK = columns.support_ids_NK
    support_logprobs_NK = _rounded(columns.support_logprobs_NK, dtype)
    is_sampled_NK = np.zeros_like(support_ids_NK, np.bool_)
    if not is_next:
        is_sampled_NK = (support_ids_NK == ids_T[positions_N, None]) & np.isfinite(support_logprobs_NK)
    rows: dict[str, Column | None] = {
        "positions": positions_N,
        # A number that is none is null in JSON.
        "sampled_logprobs": np.full(num_rows, np.nan) if is_next else columns.sampled_logprobs_N,
        "sampled_ranks": np.where(is_sampled_NK.any(axis=1), is_sampled_NK.argmax(axis=1) + 1, 0),
        "log_tail_mass": columns.log_tail_mass_N,
        "entropies": columns.entropies_N,
        "support_ids": support_ids_NK,
        "support_logprobs": support_logprobs_NK,
        "candidate_ids": None,
        "candidate_logprobs": None,
        "teacher_rows": None if response.teacher_ids_M is None else response.teacher_rows_N,
    }
    if asked.candidate_ids_TC is not None and columns.candidate_logprobs_NC is not None:
        rows["candidate_ids"] = asked.candidate_ids_TC[positions_N]
        rows["candidate_logprobs"] = _rounded(columns.candidate_logprobs_NC, dtype)
    return ResponseView(
        ids_T=ids_T,
        status_T=columns.status_T,
        student_logprobs_T=student_logprobs_T,
        teacher_ids_M=response.teacher_ids_M,
        unmapped_mass=float(np.float32(response.unmapped_mass)),
        digest=response.digest.hex(),
        rows=rows,
    )


def _rounded(logprobs: LogprobArray, dtype: LogprobDtype) -> LogprobArray:
    """As the wire would round them."""
    if dtype is LogprobDtype.F32:
        return logprobs
    with np.errstate(over="ignore"):
        return logprobs.astype(np.float16).astype(np.float32)
