"""Applies the head to hidden states, a chunk of rows at a time, and collects their columns."""

# N = scored positions of a batch, n = those of a forward, R = rows of a chunk, D = hidden size,
# E = candidates of a chunk

from __future__ import annotations

from collections.abc import Sequence

import torch

from preceptor_server.engines.assembly import ColumnCollector
from preceptor_server.engines.columns import columns_of
from preceptor_server.engines.hf.causal_lm import LoadedModel
from preceptor_server.engines.hf.scored_rows import scored_rows
from preceptor_server.types import GroupColumns, ScoreGroup


class HeadRun:
    """The columns of one batch, whose hidden states may come from several forwards."""

    def __init__(self, model: LoadedModel, batch: Sequence[ScoreGroup], *, rows_per_chunk: int) -> None:
        self._model = model
        self._rows_per_chunk = rows_per_chunk
        self._rows = scored_rows(batch)
        self._temperatures = torch.tensor([group.temperature for group in batch])
        self._top_ks = torch.tensor([group.top_k for group in batch])
        self._max_top_k = max(group.top_k for group in batch)
        self._collector = ColumnCollector(batch)
        self._num_done = 0

    def add(self, hidden_nD: torch.Tensor) -> None:
        """Those of the next rows."""
        for start in range(0, len(hidden_nD), self._rows_per_chunk):
            chunk_RD = hidden_nD[start : start + self._rows_per_chunk]
            self._add_chunk(chunk_RD)
            self._num_done += len(chunk_RD)

    def finish(self) -> list[GroupColumns]:
        """After the last row."""
        return self._collector.finish()

    def _add_chunk(self, hidden_RD: torch.Tensor) -> None:
        device, chunk = hidden_RD.device, slice(self._num_done, self._num_done + len(hidden_RD))
        group_R = torch.from_numpy(self._rows.group_of_row_N[chunk])
        rows_E, ids_E = self._candidates(chunk, device)
        self._collector.add(
            columns_of(
                self._model.logits(hidden_RD),
                sampled_ids_R=torch.from_numpy(self._rows.sampled_ids_N[chunk]).to(device),
                temperatures_R=self._temperatures[group_R].to(device),
                top_ks_R=self._top_ks[group_R].to(device),
                max_top_k=self._max_top_k,
                candidate_rows_E=rows_E,
                candidate_ids_E=ids_E,
            )
        )

    def _candidates(self, chunk: slice, device: torch.device) -> tuple[torch.Tensor, torch.Tensor] | tuple[None, None]:
        """Rows and ids of the candidates in a chunk of rows, each [E]; None twice where it has none."""
        if self._rows.candidates is None:
            return None, None
        rows_E, ids_E = self._rows.candidates.of_chunk(chunk.start, chunk.stop)
        if not len(ids_E):
            return None, None
        return torch.from_numpy(rows_E).to(device), torch.from_numpy(ids_E).to(device)
