"""What a worker of vLLM is asked for, and what it answers: one flat int32 row of numbers per request. Numpy only.

Both sides of vLLM's process boundary import this: the question travels as bytes in `PoolingParams.extra_kwargs`, the
answer as one tensor, and neither is ever a Python object per token.
"""

# R = wanted rows of a request, K = support size, E = candidates of all its rows

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from preceptor.wire import LogprobArray, PackedTokenArray, TokenArray

from preceptor_server.engines.candidates import CandidateRows

TASK: Literal["token_embed"] = "token_embed"
"""The task of vLLM's that answers with one tensor per request and may be asked in chunks."""

KEY = "preceptor"
"""Entry of `PoolingParams.extra_kwargs` that holds the question."""

ROWS_PER_CHUNK = "preceptor_rows_per_head_chunk"
"""Entry of vLLM's `additional_config`: rows whose logits exist at once."""

NUM_SCALARS = 4
"""Columns of a row before its support: state, sampled logprob, log tail mass, entropy."""

MISSING, NON_FINITE, FINITE = -1, 0, 1
"""States of a row. MISSING: no forward computed it, since vLLM took its token from the prefix cache."""

Int32Array = npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RowQuestion:
    """Row r wants the distribution after the request's token `positions_R[r]`, ascending."""

    positions_R: npt.NDArray[np.int64]
    sampled_ids_R: TokenArray
    candidates: CandidateRows | None
    """Ids whose logprobs are wanted too, row by row."""
    top_k: int
    temperature: float
    cache_limit: int
    """Tokens at the request's beginning that may come from the prefix cache: none whose row is wanted."""

    @property
    def num_candidates(self) -> int:
        return 0 if self.candidates is None else len(self.candidates.ids_E)

    def to_kwargs(self) -> dict[str, Any]:  # Any: vLLM's own type for it
        starts, ids = b"", b""
        if self.candidates is not None:
            starts, ids = _bytes(self.candidates.starts_N1), _bytes(self.candidates.ids_E)
        return {
            KEY: {
                "positions": _bytes(self.positions_R),
                "sampled": _bytes(self.sampled_ids_R),
                "starts": starts,
                "ids": ids,
                "top_k": self.top_k,
                "temperature": self.temperature,
                "cache_limit": self.cache_limit,
            }
        }

    @classmethod
    def from_kwargs(cls, kwargs: dict[str, Any]) -> RowQuestion:
        sent = kwargs[KEY]
        candidates = None
        if sent["starts"]:
            candidates = CandidateRows(ids_E=np.frombuffer(sent["ids"], "<i4"), starts_N1=_ints(sent["starts"]))
        return cls(
            positions_R=_ints(sent["positions"]),
            sampled_ids_R=_ints(sent["sampled"]),
            candidates=candidates,
            top_k=sent["top_k"],
            temperature=sent["temperature"],
            cache_limit=sent["cache_limit"],
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RowAnswer:
    """The columns of a request's rows; those of a row that is not FINITE mean nothing."""

    states_R: Int32Array
    sampled_logprobs_R: LogprobArray
    log_tail_mass_R: LogprobArray
    entropies_R: LogprobArray
    support_ids_RK: TokenArray
    support_logprobs_RK: LogprobArray
    candidate_logprobs_E: LogprobArray


def row_width(top_k: int) -> int:
    """Numbers per row: its scalars, K ids, K logprobs."""
    return NUM_SCALARS + 2 * top_k


def answer_size(question: RowQuestion) -> int:
    """Numbers of the whole answer: the rows, then the candidates."""
    return len(question.positions_R) * row_width(question.top_k) + question.num_candidates


def read_answer(flat: Int32Array, question: RowQuestion) -> RowAnswer:
    """Views into `flat`. Raises ValueError where its size is not that of an answer to this question."""
    num_rows, top_k = len(question.positions_R), question.top_k
    if flat.dtype != np.int32 or flat.shape != (answer_size(question),):
        raise ValueError(
            f"vLLM answered {flat.dtype} {flat.shape} where int32 ({answer_size(question)},) was due: "
            "its model was not wrapped by Preceptor's plugin"
        )
    rows_RW = flat[: num_rows * row_width(top_k)].reshape(num_rows, row_width(top_k))
    floats_RW = rows_RW.view(np.float32)
    return RowAnswer(
        states_R=rows_RW[:, 0],
        sampled_logprobs_R=floats_RW[:, 1],
        log_tail_mass_R=floats_RW[:, 2],
        entropies_R=floats_RW[:, 3],
        support_ids_RK=rows_RW[:, NUM_SCALARS : NUM_SCALARS + top_k].astype(np.int64),
        support_logprobs_RK=floats_RW[:, NUM_SCALARS + top_k :],
        candidate_logprobs_E=flat[num_rows * row_width(top_k) :].view(np.float32),
    )


def _bytes(ids: PackedTokenArray) -> bytes:
    return ids.astype("<i4", copy=False).tobytes()


def _ints(data: bytes) -> npt.NDArray[np.int64]:
    return np.frombuffer(data, "<i4").astype(np.int64)
