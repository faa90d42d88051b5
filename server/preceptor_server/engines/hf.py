"""Scores with any causal language model that transformers loads, on a CPU or one GPU.

The default engine, and the reference for every other. Owns the model and one thread; knows nothing of requests.
"""

# F = flat tokens of a batch, N = scored positions of a batch, T = tokens of a sequence, D = hidden size,
# V = vocabulary, E = candidates of a chunk

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from preceptor.wire import LogprobArray, TokenArray

from preceptor_server.config import EngineConfig
from preceptor_server.engines import packed_attention
from preceptor_server.engines.assembly import ColumnCollector
from preceptor_server.engines.base import Restore
from preceptor_server.engines.causal_lm import LoadedModel, load_model
from preceptor_server.engines.columns import columns_of
from preceptor_server.engines.packing import MIN_SHARED_TOKENS, PackedBatch, pack
from preceptor_server.errors import WeightUpdateError
from preceptor_server.types import EngineInfo, GroupColumns, ScoreGroup

logger = logging.getLogger(__name__)

_REFERENCE_ATTENTION = "eager"


class HfEngine:
    """transformers behind the Engine protocol."""

    def __init__(self, config: EngineConfig) -> None:
        self._config = config
        self._model: LoadedModel | None = None
        # One thread: two forwards at once would only fight for the same cores.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="hf-engine")

    def load(self) -> None:
        self._model = load_model(self._config)
        if self._config.packing == "packed":
            self._model.use_attention(packed_attention.IMPLEMENTATION)

    def info(self) -> EngineInfo:
        model = self._loaded
        return EngineInfo(
            engine="hf",
            model=model.name,
            revision=model.revision,
            dtype=self._config.dtype,
            device=model.device.type,
            vocabulary_size=model.vocabulary_size,
            max_model_len=model.max_model_len,
            end_token_ids=model.end_token_ids,
            min_shared_prefix=MIN_SHARED_TOKENS if self._config.packing == "packed" else None,
            scores_candidates=True,
            remedy="The architecture may not fit packing: try engine.packing='sequential'"
            if self._config.packing == "packed"
            else "",
        )

    async def score(self, batch: Sequence[ScoreGroup]) -> list[GroupColumns]:
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._score, list(batch))

    async def reference_logprobs(self, token_ids: TokenArray) -> LogprobArray:
        """The oracle, [T, V]: one plain forward over one sequence, a dense fp32 log-softmax; slow and obvious."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._reference, token_ids)

    async def load_weights(self, folder: Path) -> Restore:
        """The old weights stay in the CPU's memory for as long as the way back to them is held."""
        loop, model = asyncio.get_running_loop(), self._loaded
        before = await loop.run_in_executor(self._thread, model.load_weights, folder)

        async def restore() -> None:
            await loop.run_in_executor(self._thread, model.put_weights, before)

        return restore

    async def load_adapter(self, name: str, folder: Path) -> None:
        del name, folder
        raise WeightUpdateError("adapter", "the engine 'hf' serves no adapters, only 'vllm' does")

    async def unload_adapter(self, name: str) -> None:
        del name
        raise WeightUpdateError("adapter", "the engine 'hf' serves no adapters, only 'vllm' does")

    def close(self) -> None:
        self._thread.shutdown(wait=True)
        self._model = None

    @property
    def _loaded(self) -> LoadedModel:
        assert self._model is not None, "load() comes first"
        return self._model

    @torch.inference_mode()
    def _score(self, batch: list[ScoreGroup]) -> list[GroupColumns]:
        packed = pack(batch)
        hidden = self._hidden_of_packed if self._config.packing == "packed" else self._hidden_of_sequences
        hidden_ND = hidden(packed, batch)
        return self._apply_head(hidden_ND, packed, batch)

    def _hidden_of_packed(self, packed: PackedBatch, _: list[ScoreGroup]) -> torch.Tensor:
        model = self._loaded
        with packed_attention.attending_within(packed.segments):
            hidden_FD = model.hidden_states(
                torch.from_numpy(packed.token_ids_F)[None], positions=torch.from_numpy(packed.positions_F)[None]
            )[0]
        return hidden_FD[torch.from_numpy(packed.rows_N).to(model.device)]

    def _hidden_of_sequences(self, _: PackedBatch, batch: list[ScoreGroup]) -> torch.Tensor:
        rows: list[torch.Tensor] = []
        for group in batch:
            for response in group.responses:
                ids = torch.cat([torch.from_numpy(group.prompt_ids_P), torch.from_numpy(response.ids_T[:-1])])
                hidden_D = self._loaded.hidden_states(ids[None])[0, len(group.prompt_ids_P) - 1 :]
                rows.append(hidden_D[torch.from_numpy(response.score_mask_T).to(hidden_D.device)])
        return torch.cat(rows)

    def _apply_head(self, hidden_ND: torch.Tensor, packed: PackedBatch, batch: list[ScoreGroup]) -> list[GroupColumns]:
        device = hidden_ND.device
        group_N = torch.from_numpy(packed.group_of_row_N)
        temperatures_N = torch.tensor([group.temperature for group in batch])[group_N].to(device)
        top_ks_N = torch.tensor([group.top_k for group in batch])[group_N].to(device)
        sampled_N = torch.from_numpy(packed.sampled_ids_N).to(device)
        max_top_k = max(group.top_k for group in batch)
        collector = ColumnCollector(batch)
        for start in range(0, len(hidden_ND), self._config.rows_per_head_chunk):
            chunk = slice(start, min(start + self._config.rows_per_head_chunk, len(hidden_ND)))
            rows_E, ids_E = _candidates_of(packed, chunk, device)
            collector.add(
                columns_of(
                    self._loaded.logits(hidden_ND[chunk]),
                    sampled_ids_R=sampled_N[chunk],
                    temperatures_R=temperatures_N[chunk],
                    top_ks_R=top_ks_N[chunk],
                    max_top_k=max_top_k,
                    candidate_rows_E=rows_E,
                    candidate_ids_E=ids_E,
                )
            )
        return collector.finish()

    @torch.inference_mode()
    def _reference(self, token_ids: TokenArray) -> LogprobArray:
        model = self._loaded
        with model.attention(_REFERENCE_ATTENTION):
            logits_TV = model.plain_logits(torch.from_numpy(token_ids)[None])[0]
        logprobs: LogprobArray = logits_TV.float().log_softmax(dim=-1).cpu().numpy()
        return logprobs


def _candidates_of(
    packed: PackedBatch, chunk: slice, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor] | tuple[None, None]:
    """Rows and ids of the candidates in a chunk of rows, each [E]; None twice where it has none."""
    if packed.candidates is None:
        return None, None
    rows_E, ids_E = packed.candidates.of_chunk(chunk.start, chunk.stop)
    if not len(ids_E):
        return None, None
    return torch.from_numpy(rows_E).to(device), torch.from_numpy(ids_E).to(device)
