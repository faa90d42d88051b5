"""Answers of the core for tests of what is done with them."""

# N = scored positions, K = support size

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from preceptor.wire import LogprobDtype, PositionStatus, SegmentationPolicy
from preceptor_server.calls import ScoredCall, ScoredResponse, Timings
from preceptor_server.types import ResponseColumns


def columns_of(logprobs: Sequence[float], *, top_k: int = 1) -> ResponseColumns:
    """Of a response whose positions are all scored, each with these logprobs of its own tokens and of its tails."""
    column_N = np.array(logprobs, np.float32)
    return ResponseColumns(
        status_T=np.full(len(column_N), PositionStatus.OK, np.uint8),
        support_ids_NK=np.zeros((len(column_N), top_k), np.int64),
        support_logprobs_NK=np.zeros((len(column_N), top_k), np.float32),
        sampled_logprobs_N=column_N,
        log_tail_mass_N=column_N,
        entropies_N=column_N,
    )


def scored_call(*columns: ResponseColumns, **fields: Any) -> ScoredCall:  # Any: the fields of ScoredCall
    """An answer with these columns, one response each."""
    defaults: dict[str, Any] = {
        "request_id": "",
        "teacher": "professor",
        "revision": "r-1",
        "adapter": "",
        "tokenizer_id": "student",
        "top_k": 1,
        "temperature": 1.0,
        "logprob_dtype": LogprobDtype.F32,
        "segmentation": SegmentationPolicy.AS_IS,
        "student_vocabulary_size": 300,
        "teacher_vocabulary_size": 300,
        "prompt_ids_P": np.array([3, 4]),
        "returns_prompt_ids": False,
        "timings": Timings(),
    }
    responses = tuple(ScoredResponse(columns=one, digest=bytes(32)) for one in columns)
    return ScoredCall(**defaults | {"responses": responses} | fields)
