"""Scores with any causal language model that transformers loads, on a CPU or one GPU.

The default engine, and the reference for every other. Owns the model and one thread; knows nothing of requests.
"""

# N = scored positions of a batch, T = tokens of a sequence, D = hidden size,
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
from preceptor_server.engines.assembly import ColumnCollector
from preceptor_server.engines.base import Restore
from preceptor_server.engines.columns import columns_of
from preceptor_server.engines.hf.causal_lm import LoadedModel
from preceptor_server.engines.hf.forwards import Forwards, PackedForwards, SequentialForwards
from preceptor_server.engines.hf.loading import load_model
from preceptor_server.engines.hf.masks import UnsupportedAttentionError
from preceptor_server.engines.hf.packing import MIN_SHARED_TOKENS
from preceptor_server.engines.hf.scored_rows import ScoredRows, scored_rows
from preceptor_server.errors import StartupError, WeightUpdateError
from preceptor_server.types import EngineInfo, GroupColumns, ScoreGroup

logger = logging.getLogger(__name__)

_REMEDY = "set engine.packing to auto or sequential"
_REFERENCE_ATTENTION = "eager"
_LONGEST_EAGER_TOKENS = 1024
"""Eager attention holds a matrix of tokens times tokens for every head; longer references take the model's default."""


class HfEngine:
    """transformers behind the Engine protocol."""

    def __init__(self, config: EngineConfig) -> None:
        self._config = config
        self._model: LoadedModel | None = None
        self._forwards: Forwards | None = None
        self._default_attention = ""
        # One thread: two forwards at once would only fight for the same cores.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="hf-engine")

    def load(self) -> None:
        self._model = load_model(self._config)
        self._default_attention = self._model.attention_implementation
        if self._config.packing == "sequential":
            self._forwards = SequentialForwards(self._model, attention=self._default_attention)
            return
        try:
            self._forwards = PackedForwards(self._model)
        except UnsupportedAttentionError as error:
            if self._config.packing == "packed":
                raise StartupError(f"engine.packing=packed does not fit this model ({error}): {_REMEDY}") from error
            self._become_sequential(str(error))

    def fall_back(self, reason: str) -> bool:
        if self._config.packing != "auto" or self._packing == "sequential":
            return False
        self._become_sequential(reason)
        return True

    def _become_sequential(self, reason: str) -> None:
        logger.warning("engine.packing is sequential, a forward for each response: packed does not fit: %s", reason)
        self._forwards = SequentialForwards(self._loaded, attention=self._default_attention)

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
            min_shared_prefix=MIN_SHARED_TOKENS if self._packing == "packed" else None,
            scores_candidates=True,
            packing=self._packing,
            thresholds=model.thresholds,
            remedy=self._remedy,
        )

    async def score(self, batch: Sequence[ScoreGroup]) -> list[GroupColumns]:
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._score, list(batch))

    async def reference_logprobs(self, token_ids: TokenArray, *, first_row: int = 0) -> LogprobArray:
        """The oracle: one plain forward over one sequence, a dense fp32 log-softmax; slow and obvious."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._reference, token_ids, first_row)

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
    def _packing(self) -> str:
        assert self._forwards is not None, "load() comes first"
        return self._forwards.packing

    @property
    def _remedy(self) -> str:
        if self._packing == "sequential":
            return "The engine cannot serve this engine.model, not even with engine.packing=sequential"
        return f"Packing may not fit the architecture: {_REMEDY}" if self._config.packing == "packed" else ""

    @property
    def _loaded(self) -> LoadedModel:
        assert self._model is not None, "load() comes first"
        return self._model

    @torch.inference_mode()
    def _score(self, batch: list[ScoreGroup]) -> list[GroupColumns]:
        assert self._forwards is not None, "load() comes first"
        return self._apply_head(self._forwards.hidden_states(batch), batch)

    def _apply_head(self, hidden_ND: torch.Tensor, batch: list[ScoreGroup]) -> list[GroupColumns]:
        rows, device = scored_rows(batch), hidden_ND.device
        group_N = torch.from_numpy(rows.group_of_row_N)
        temperatures_N = torch.tensor([group.temperature for group in batch])[group_N].to(device)
        top_ks_N = torch.tensor([group.top_k for group in batch])[group_N].to(device)
        sampled_N = torch.from_numpy(rows.sampled_ids_N).to(device)
        max_top_k = max(group.top_k for group in batch)
        collector = ColumnCollector(batch)
        for start in range(0, len(hidden_ND), self._config.rows_per_head_chunk):
            chunk = slice(start, min(start + self._config.rows_per_head_chunk, len(hidden_ND)))
            rows_E, ids_E = _candidates_of(rows, chunk, device)
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
    def _reference(self, token_ids: TokenArray, first_row: int) -> LogprobArray:
        model = self._loaded
        is_long = len(token_ids) > _LONGEST_EAGER_TOKENS
        with model.attention(self._default_attention if is_long else _REFERENCE_ATTENTION):
            logits_TV = model.plain_logits(torch.from_numpy(token_ids), first_row=first_row)
        logprobs: LogprobArray = logits_TV.float().log_softmax(dim=-1).cpu().numpy()
        return logprobs


def _candidates_of(
    rows: ScoredRows, chunk: slice, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor] | tuple[None, None]:
    """Rows and ids of the candidates in a chunk of rows, each [E]; None twice where it has none."""
    if rows.candidates is None:
        return None, None
    rows_E, ids_E = rows.candidates.of_chunk(chunk.start, chunk.stop)
    if not len(ids_E):
        return None, None
    return torch.from_numpy(rows_E).to(device), torch.from_numpy(ids_E).to(device)
