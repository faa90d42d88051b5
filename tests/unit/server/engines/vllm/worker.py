"""Stands in for vLLM's worker: answers questions about rows out of the fake engine's formula, densely."""

# R = wanted rows of a request, K = support size, V = vocabulary size, E = candidates of all rows

from __future__ import annotations

import asyncio

import numpy as np
from preceptor_server.engines.vllm.fast import FastRequest
from preceptor_server.engines.vllm.rows import (
    FINITE,
    MISSING,
    RowAnswer,
    RowQuestion,
    answer_size,
    read_answer,
    row_width,
)

from tests.engines.fake import FakeEngine

VOCABULARY_SIZE = 61


def fake_engine() -> FakeEngine:
    return FakeEngine(vocabulary_size=VOCABULARY_SIZE)


def answer(request: FastRequest, *, num_cached: int = 0) -> RowAnswer:
    """As a worker would whose prefix cache held the request's first `num_cached` tokens. The question and the answer
    pass through the bytes in which they travel."""
    question = RowQuestion.from_kwargs(request.question.to_kwargs())
    assert question.positions_R.max() < len(request.token_ids), "a row after the last token"
    logprobs_TV = asyncio.run(fake_engine().reference_logprobs(request.token_ids)).astype(np.float64)
    scaled_RV = logprobs_TV[question.positions_R] / question.temperature
    logprobs_RV = scaled_RV - np.log(np.exp(scaled_RV).sum(axis=1, keepdims=True))
    order_RV = np.argsort(-logprobs_RV, axis=1, kind="stable")
    top_RK = order_RV[:, : question.top_k]
    num_rows = len(question.positions_R)
    rows_RW = np.zeros((num_rows, row_width(question.top_k)), np.int32)
    rows_RW[:, 0] = np.where(question.positions_R < num_cached, MISSING, FINITE)
    floats_RW = rows_RW.view(np.float32)
    floats_RW[:, 1] = np.take_along_axis(logprobs_RV, question.sampled_ids_R[:, None], 1)[:, 0]
    floats_RW[:, 2] = np.log(np.exp(np.take_along_axis(logprobs_RV, order_RV[:, question.top_k :], 1)).sum(axis=1))
    floats_RW[:, 3] = -(np.exp(logprobs_RV) * logprobs_RV).sum(axis=1)
    rows_RW[:, 4 : 4 + question.top_k] = top_RK
    floats_RW[:, 4 + question.top_k :] = np.take_along_axis(logprobs_RV, top_RK, 1)
    flat = np.zeros(answer_size(question), np.int32)
    flat[: rows_RW.size] = rows_RW.ravel()
    if question.candidates is not None:
        rows_E, ids_E = question.candidates.of_chunk(0, num_rows)
        flat[rows_RW.size :] = logprobs_RV[rows_E, ids_E].astype(np.float32).view(np.int32)
    return read_answer(flat, question)
