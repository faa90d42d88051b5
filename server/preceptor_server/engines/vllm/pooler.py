"""Applies the head to the wanted rows, inside vLLM's worker, and packs their columns. Runs on every tensor-parallel
rank.

vLLM calls a pooler once per forward with the hidden states of every scheduled token. A long request comes in chunks:
its answer is one buffer, filled row by row as chunks arrive and handed over with the last. Filling is idempotent, so a
request that vLLM preempts and computes again ends with the same answer.
"""

# F = scheduled tokens of a forward, D = hidden size, V = vocabulary size, N = wanted rows of a forward, R = of a chunk,
# K = support size, W = numbers per row, E = candidates

from __future__ import annotations

from collections.abc import Callable, Set
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from vllm.model_executor.layers.pooler.abstract import Pooler
from vllm.tasks import PoolingTask
from vllm.v1.pool.metadata import PoolingMetadata

from preceptor_server.engines.columns import ChunkColumns, columns_of
from preceptor_server.engines.vllm.rows import (
    FINITE,
    KEY,
    MISSING,
    NUM_SCALARS,
    TASK,
    RowQuestion,
    answer_size,
    row_width,
)

_TOP_K_OF_PROFILING = 64
"""Support of the dummy run by which vLLM measures how much memory a forward takes."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Part:
    """The rows of one request that a forward computed: [first, stop) of its question."""

    question: RowQuestion
    buffer: torch.Tensor
    first: int
    stop: int
    flat_rows_N: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return self.stop - self.first


class ScoringPooler(Pooler):  # type: ignore[misc]  # vLLM's classes are Any where vLLM is not installed
    """Answers RowQuestions."""

    def __init__(self, compute_logits: Callable[[torch.Tensor], torch.Tensor | None], *, rows_per_chunk: int) -> None:
        super().__init__()
        self._compute_logits = compute_logits
        self._rows_per_chunk = rows_per_chunk

    def get_supported_tasks(self) -> Set[PoolingTask]:
        return {TASK}

    def forward(self, hidden_states: torch.Tensor, pooling_metadata: PoolingMetadata) -> list[torch.Tensor | None]:
        cursor = pooling_metadata.get_pooling_cursor()
        lengths = cursor.num_scheduled_tokens_cpu.tolist()
        if any(KEY not in (params.extra_kwargs or {}) for params in pooling_metadata.pooling_params):
            return self._profile(hidden_states, len(lengths))
        parts: list[_Part] = []
        start = 0
        for index, length in enumerate(lengths):
            position = int(cursor.seq_lens_cpu[index]) - length
            parts.append(_part_of(pooling_metadata, index, start, position, length, hidden_states.device))
            start += length
        self._score(hidden_states, parts)
        answers: list[torch.Tensor | None] = []
        for state, part, is_finished in zip(
            pooling_metadata.pooling_states, parts, cursor.get_finished_mask(), strict=True
        ):
            answers.append(part.buffer if is_finished else None)
            if is_finished:
                state.clean()
        return answers

    def _score(self, hidden_FD: torch.Tensor, parts: list[_Part]) -> None:
        """Head and columns of all parts' rows, in chunks that know nothing of requests."""
        rows_N = np.concatenate([part.flat_rows_N for part in parts])
        if not len(rows_N):
            return
        columns = _Columns.of(parts, hidden_FD.device)
        hidden_ND = hidden_FD[torch.from_numpy(rows_N).to(hidden_FD.device)]
        for start in range(0, len(rows_N), self._rows_per_chunk):
            chunk = slice(start, min(start + self._rows_per_chunk, len(rows_N)))
            logits_RV = self._compute_logits(hidden_ND[chunk])
            if logits_RV is None:  # a rank that takes part in the head and answers nothing
                continue
            columns.fill(chunk, logits_RV)

    def _profile(self, hidden_FD: torch.Tensor, num_requests: int) -> list[torch.Tensor | None]:
        """One chunk at its largest, so that vLLM's measurement of memory includes it."""
        hidden_RD = hidden_FD[: self._rows_per_chunk]
        logits_RV = self._compute_logits(hidden_RD)
        if logits_RV is not None:
            num_rows, device = len(hidden_RD), hidden_RD.device
            top_k = min(_TOP_K_OF_PROFILING, logits_RV.shape[1])
            columns_of(
                logits_RV,
                sampled_ids_R=torch.zeros(num_rows, dtype=torch.long, device=device),
                temperatures_R=torch.ones(num_rows, device=device),
                top_ks_R=torch.full((num_rows,), top_k, device=device),
                max_top_k=top_k,
            )
        return [torch.zeros(0, dtype=torch.int32) for _ in range(num_requests)]


def _part_of(
    metadata: PoolingMetadata, index: int, start: int, position: int, length: int, device: torch.device
) -> _Part:
    """The rows wanted of request `index`, whose tokens [position, position + length) lie at `start` of the forward."""
    question = RowQuestion.from_kwargs(metadata.pooling_params[index].extra_kwargs or {})
    cache: list[torch.Tensor] = metadata.pooling_states[index].hidden_states_cache
    if not cache:
        buffer = torch.zeros(answer_size(question), dtype=torch.int32, device=device)
        num_rows = len(question.positions_R)
        buffer[: num_rows * row_width(question.top_k)].view(num_rows, -1)[:, 0] = MISSING
        cache.append(buffer)
    first, stop = np.searchsorted(question.positions_R, [position, position + length])
    return _Part(
        question=question,
        buffer=cache[0],
        first=int(first),
        stop=int(stop),
        flat_rows_N=question.positions_R[first:stop] - position + start,
    )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Columns:
    """What the chunks of one forward need of its parts, on the model's device."""

    parts: list[_Part]
    part_starts: list[int]
    sampled_ids_N: torch.Tensor
    temperatures_N: torch.Tensor
    top_ks_N: torch.Tensor

    @classmethod
    def of(cls, parts: list[_Part], device: torch.device) -> _Columns:
        lengths = [len(part) for part in parts]
        sampled_N = np.concatenate([part.question.sampled_ids_R[part.first : part.stop] for part in parts])
        temperatures_N = np.repeat(np.array([part.question.temperature for part in parts], np.float32), lengths)
        top_ks_N = np.repeat(np.array([part.question.top_k for part in parts]), lengths)
        return cls(
            parts=parts,
            part_starts=np.concatenate([[0], np.cumsum(lengths)]).tolist(),
            sampled_ids_N=torch.from_numpy(sampled_N).to(device),
            temperatures_N=torch.from_numpy(temperatures_N).to(device),
            top_ks_N=torch.from_numpy(top_ks_N).to(device),
        )

    def fill(self, chunk: slice, logits_RV: torch.Tensor) -> None:
        """Computes the columns of the rows `chunk` and writes them into their requests' buffers."""
        slices = self._slices_of(chunk)
        rows_E, ids_E = _candidates_of(slices, logits_RV.device)
        columns = columns_of(
            logits_RV,
            sampled_ids_R=self.sampled_ids_N[chunk],
            temperatures_R=self.temperatures_N[chunk],
            top_ks_R=self.top_ks_N[chunk],
            max_top_k=max(one.part.question.top_k for one in slices),
            candidate_rows_E=rows_E,
            candidate_ids_E=ids_E,
        )
        packed_RW = _packed(columns)
        for one in slices:
            _write_rows(one, packed_RW[one.row : one.row + len(one)])
        if columns.candidate_logprobs_E is not None:
            _write_candidates(slices, columns.candidate_logprobs_E)

    def _slices_of(self, chunk: slice) -> list[_Slice]:
        slices: list[_Slice] = []
        for part, start in zip(self.parts, self.part_starts, strict=False):
            first, stop = max(chunk.start, start), min(chunk.stop, start + len(part))
            if first < stop:
                offset = part.first - start
                slices.append(_Slice(part=part, first=first + offset, stop=stop + offset, row=first - chunk.start))
        return slices


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Slice:
    """The rows [first, stop) of a question, at `row` of a chunk."""

    part: _Part
    first: int
    stop: int
    row: int

    def __len__(self) -> int:
        return self.stop - self.first


def _candidates_of(slices: list[_Slice], device: torch.device) -> tuple[torch.Tensor, torch.Tensor] | tuple[None, None]:
    """Rows of the chunk and ids of its candidates, each [E]; None twice where there are none."""
    rows, ids = [], []
    for one in slices:
        if one.part.question.candidates is not None:
            rows_E, ids_E = one.part.question.candidates.of_chunk(one.first, one.stop)
            rows.append(rows_E + one.row)
            ids.append(ids_E)
    if not any(len(one) for one in ids):
        return None, None
    return torch.from_numpy(np.concatenate(rows)).to(device), torch.from_numpy(np.concatenate(ids)).to(device)


def _packed(columns: ChunkColumns) -> torch.Tensor:
    """Rows as they travel, int32 [R, W]; floats keep their bits."""
    scalars_R3 = torch.stack([columns.sampled_logprobs_R, columns.log_tail_mass_R, columns.entropies_R], dim=1)
    return torch.cat(
        [
            (columns.is_finite_R.to(torch.int32) * FINITE)[:, None],
            scalars_R3.view(torch.int32),
            columns.support_ids_RK.to(torch.int32),
            columns.support_logprobs_RK.contiguous().view(torch.int32),
        ],
        dim=1,
    )


def _write_rows(rows: _Slice, packed_RW: torch.Tensor) -> None:
    top_k = rows.part.question.top_k
    width, chunk_top_k = row_width(top_k), (packed_RW.shape[1] - NUM_SCALARS) // 2
    rows_RW = rows.part.buffer[rows.first * width : rows.stop * width].view(len(rows), width)
    if chunk_top_k == top_k:
        rows_RW.copy_(packed_RW)
        return
    rows_RW[:, : NUM_SCALARS + top_k] = packed_RW[:, : NUM_SCALARS + top_k]
    logprobs = NUM_SCALARS + chunk_top_k
    rows_RW[:, NUM_SCALARS + top_k :] = packed_RW[:, logprobs : logprobs + top_k]


def _write_candidates(slices: list[_Slice], logprobs_E: torch.Tensor) -> None:
    taken = 0
    for one in slices:
        question = one.part.question
        if question.candidates is None:
            continue
        begin, end = question.candidates.starts_N1[[one.first, one.stop]].tolist()
        offset = len(question.positions_R) * row_width(question.top_k)
        own_E = logprobs_E[taken : taken + end - begin]
        one.part.buffer[offset + begin : offset + end] = own_E.contiguous().view(torch.int32)
        taken += end - begin
