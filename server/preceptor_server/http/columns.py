"""A ScoreResponse's packed columns as arrays, with what the request says about them. Knows no JSON."""

# T = tokens of a response, N = its scored positions, K = support size, C = candidates per position, M = tokens of the
# teacher

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from preceptor.v1 import teacher_pb2 as pb
from preceptor.wire import LogprobArray, PositionStatus, StatusArray, TokenArray, decode_logprobs, decode_token_ids

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


def view_of(request: pb.ScoreRequest, response: pb.ScoreResponse, notes: Notes) -> list[ResponseView]:
    """One per response. `response` is without the token that stands in, where there is one."""
    logprobs = notes.student_logprobs or (None,) * len(response.responses)
    return [
        _view(asked, scores, response, is_next=notes.is_next, student_logprobs_T=student_logprobs_T)
        for asked, scores, student_logprobs_T in zip(request.responses, response.responses, logprobs, strict=True)
    ]


def prompt_ids_of(request: pb.ScoreRequest, response: pb.ScoreResponse) -> TokenArray:
    """The prompt as scored: where the answer does not say it, it is the request's own."""
    if response.HasField("prompt_ids"):
        return column_of_ids(response.prompt_ids)
    return column_of_ids(getattr(request.prompt, str(request.prompt.WhichOneof("kind"))))


def column_of_ids(ids: pb.TokenIds) -> TokenArray:
    return decode_token_ids(ids.data, ids.dtype, field="ids")


def _view(
    asked: pb.Response,
    scores: pb.ResponseScores,
    response: pb.ScoreResponse,
    *,
    is_next: bool,
    student_logprobs_T: tuple[float, ...] | None,
) -> ResponseView:
    ids_T = np.zeros(0, np.int64) if is_next else column_of_ids(asked.ids)
    status_T = np.frombuffer(scores.status, np.uint8)
    num_rows = len(scores.log_tail_mass) // 4
    positions_N = np.arange(num_rows) if is_next else np.flatnonzero(status_T == PositionStatus.OK)
    support_ids_NK = decode_token_ids(scores.support_ids, response.token_dtype, field="support_ids")
    support_ids_NK = support_ids_NK.reshape(num_rows, response.top_k)
    support_logprobs_NK = _logprobs(scores.support_logprobs, response).reshape(num_rows, response.top_k)
    is_sampled_NK = np.zeros_like(support_ids_NK, np.bool_)
    if not is_next:
        is_sampled_NK = (support_ids_NK == ids_T[positions_N, None]) & np.isfinite(support_logprobs_NK)
    rows: dict[str, Column | None] = {
        "positions": positions_N,
        # A number that is none is null in JSON.
        "sampled_logprobs": np.full(num_rows, np.nan) if is_next else _f32(scores.sampled_logprobs),
        "sampled_ranks": np.where(is_sampled_NK.any(axis=1), is_sampled_NK.argmax(axis=1) + 1, 0),
        "log_tail_mass": _f32(scores.log_tail_mass),
        "entropies": _f32(scores.entropies) if scores.entropies or not num_rows else None,
        "support_ids": support_ids_NK,
        "support_logprobs": support_logprobs_NK,
        "candidate_ids": None,
        "candidate_logprobs": None,
        "teacher_rows": np.frombuffer(scores.teacher_rows, "<u4").astype(np.int64)
        if scores.HasField("teacher_ids")
        else None,
    }
    if asked.HasField("candidates"):
        shape = (len(ids_T), asked.candidates.num_per_position)
        rows["candidate_ids"] = column_of_ids(asked.candidates.ids).reshape(shape)[positions_N]
        rows["candidate_logprobs"] = _logprobs(scores.candidate_logprobs, response).reshape(num_rows, shape[1])
    return ResponseView(
        ids_T=ids_T,
        status_T=status_T,
        student_logprobs_T=student_logprobs_T,
        teacher_ids_M=column_of_ids(scores.teacher_ids) if scores.HasField("teacher_ids") else None,
        unmapped_mass=float(scores.unmapped_mass),
        digest=scores.digest.hex(),
        rows=rows,
    )


def _logprobs(data: bytes, response: pb.ScoreResponse) -> LogprobArray:
    return decode_logprobs(data, response.logprob_dtype, field="logprobs")


def _f32(data: bytes) -> Column:
    return np.frombuffer(data, "<f4")
