"""Scores with any causal language model that transformers loads, on a CPU or one GPU.

The default engine, and the reference for every other. Owns the model and one thread; knows nothing of requests.
"""

# T = tokens of a sequence, V = vocabulary

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar
from weakref import WeakSet

import torch
from preceptor.wire import LogprobArray, TokenArray

from preceptor_server.engines.base import Restore
from preceptor_server.engines.config import HfConfig
from preceptor_server.engines.hf.causal_lm import LoadedModel
from preceptor_server.engines.hf.division import HfDivision, KeptBudget
from preceptor_server.engines.hf.forwards import Forwards, PackedForwards, SequentialForwards
from preceptor_server.engines.hf.head import HeadRun
from preceptor_server.engines.hf.loading import load_model
from preceptor_server.engines.hf.masks import UnsupportedAttentionError
from preceptor_server.engines.hf.memory import default_max_bytes
from preceptor_server.engines.hf.out_of_memory import out_of_memory_told
from preceptor_server.engines.hf.packing import MIN_SHARED_TOKENS
from preceptor_server.engines.hf.planning import MemoryPlan
from preceptor_server.engines.hf.steps import KeptSteps, ResponseSteps, Steps
from preceptor_server.engines.hf.thread import EngineThread, engine_closed
from preceptor_server.errors import StartupError, WeightUpdateError
from preceptor_server.types import EngineInfo, GroupColumns, ScoreGroup

logger = logging.getLogger(__name__)

_Part = TypeVar("_Part")

_REMEDY = "set engine.packing to auto or sequential"
_REFERENCE_ATTENTION = "eager"
_LONGEST_EAGER_TOKENS = 1024
"""Eager attention holds a matrix of tokens times tokens for every head; longer references take the model's default."""


class HfEngine:
    """transformers behind the Engine protocol."""

    def __init__(self, config: HfConfig) -> None:
        self._config = config
        self._model: LoadedModel | None = None
        self._forwards: Forwards | None = None
        self._default_attention = ""
        self._keeps_prompts = False
        """Whether a group that is divided keeps its prompt from one slice to the next."""
        self._memory: MemoryPlan | None = None
        self._kept: KeptBudget | None = None
        self._divisions: WeakSet[HfDivision] = WeakSet()
        """Open ones among them hold the model."""
        self._is_closed = False
        self._thread = EngineThread()

    def load(self) -> None:
        self._model = load_model(self._config)
        self._default_attention = self._model.attention_implementation
        self._choose_forwards()
        max_bytes = self._config.max_batch_bytes or default_max_bytes(self._model.device)
        self._memory = MemoryPlan(
            self._model.shape, max_bytes=max_bytes, rows_per_head_chunk=self._config.rows_per_head_chunk
        )
        self._kept = KeptBudget(max_bytes)
        logger.info("memory max_batch_bytes=%d rows_per_head_chunk=%d", max_bytes, self._memory.rows_per_chunk)

    def _choose_forwards(self) -> None:
        if self._config.packing == "sequential":
            self._forwards = SequentialForwards(self._loaded, attention=self._default_attention)
            return
        try:
            self._forwards = PackedForwards(self._loaded)
            self._keeps_prompts = True
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
        self._keeps_prompts = False

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
            context_costs=model.shape.context_costs,
            thresholds=model.thresholds,
            remedy=self._remedy,
        )

    async def score(self, batch: Sequence[ScoreGroup]) -> list[GroupColumns]:
        return await self._thread.run(self._score, list(batch))

    def divide(self, group: ScoreGroup, *, max_cost: float) -> HfDivision:
        """Where packing fits the model, the prompt is computed once and what follows attends to what was kept of it; a
        long response is cut too. Else each slice holds some of the responses, at least one, and their prompt."""
        return self._divide(group, max_cost=max_cost)

    def divide_plainly(self, reason: str) -> bool:
        """By responses alone."""
        if not self._keeps_prompts:
            return False
        logger.warning("large groups are cut by responses only, each slice with its prompt: %s", reason)
        self._keeps_prompts = False
        return True

    async def reference_logprobs(self, token_ids: TokenArray, *, first_row: int = 0) -> LogprobArray:
        """The oracle: one plain forward over one sequence, a dense fp32 log-softmax; slow and obvious."""
        return await self._thread.run(self._reference, token_ids, first_row)

    async def load_weights(self, folder: Path) -> Restore:
        """The old weights stay in the CPU's memory for as long as the way back to them is held."""
        before = await self._thread.run(lambda: self._loaded.load_weights(folder))

        async def restore() -> None:
            await self._thread.run(lambda: self._loaded.put_weights(before))

        return restore

    async def load_adapter(self, name: str, folder: Path) -> None:
        del name, folder
        raise WeightUpdateError("adapter", "the engine 'hf' serves no adapters, only 'vllm' does")

    async def unload_adapter(self, name: str) -> None:
        del name
        raise WeightUpdateError("adapter", "the engine 'hf' serves no adapters, only 'vllm' does")

    def close(self) -> None:
        """Lets go of the model, also where divisions are still open."""
        self._thread.close()
        self._is_closed = True
        self._model = self._forwards = self._memory = self._kept = None
        for division in list(self._divisions):
            division.free()

    @property
    def _packing(self) -> str:
        return self._ways.packing

    @property
    def _ways(self) -> Forwards:
        return self._held(self._forwards)

    @property
    def _plan(self) -> MemoryPlan:
        return self._held(self._memory)

    @property
    def _budget(self) -> KeptBudget:
        return self._held(self._kept)

    @property
    def _remedy(self) -> str:
        if self._packing == "sequential":
            return "The engine cannot serve this engine.model, not even with engine.packing=sequential"
        return f"Packing may not fit the architecture: {_REMEDY}" if self._config.packing == "packed" else ""

    @property
    def _loaded(self) -> LoadedModel:
        return self._held(self._model)

    def _held(self, part: _Part | None) -> _Part:
        """What `load` made. Raises EngineUnavailableError after `close`."""
        if part is None and self._is_closed:
            raise engine_closed()
        assert part is not None, "load() comes first"
        return part

    def _score(self, batch: list[ScoreGroup]) -> list[GroupColumns]:
        return [columns for part in self._plan.batches(batch, self._ways) for columns in self._score_at_once(part)]

    def _score_at_once(self, batch: list[ScoreGroup]) -> list[GroupColumns]:
        if len(batch) == 1 and self._plan.batch_bytes(batch, self._ways) > self._plan.max_bytes:
            return [self._score_in_slices(batch[0])]
        with out_of_memory_told(), torch.inference_mode():
            run = HeadRun(self._loaded, batch, rows_per_chunk=self._plan.rows_per_chunk)
            run.add(self._ways.hidden_states(batch))
            return run.finish()

    def _score_in_slices(self, group: ScoreGroup) -> GroupColumns:
        """Of as many tokens as fit."""
        division = self._divide(group, max_cost=group.forward_cost(self._loaded.shape.context_costs))
        while (columns := division.advance_here()) is None:
            pass
        return columns

    def _divide(self, group: ScoreGroup, *, max_cost: float) -> HfDivision:
        model, forwards = self._loaded, self._ways
        costs = model.shape.context_costs
        ways: list[Callable[[float], Steps]] = [lambda cost: ResponseSteps(forwards, group, costs, max_cost=cost)]
        if self._keeps_prompts:
            ways.insert(0, lambda cost: KeptSteps(model, group, max_cost=cost))
        steps, num_bytes = self._plan.steps(group, ways, max_cost=max_cost)
        ordered = replace(group, responses=tuple(group.responses[index] for index in steps.responses))
        division = HfDivision(
            steps,
            HeadRun(model, [ordered], rows_per_chunk=self._plan.rows_per_chunk),
            model=model,
            num_bytes=num_bytes,
            budget=self._budget,
            thread=self._thread,
        )
        self._divisions.add(division)
        return division

    @torch.inference_mode()
    def _reference(self, token_ids: TokenArray, first_row: int) -> LogprobArray:
        model = self._loaded
        is_long = len(token_ids) > _LONGEST_EAGER_TOKENS
        with model.attention(self._default_attention if is_long else _REFERENCE_ATTENTION):
            logits_TV = model.plain_logits(torch.from_numpy(token_ids), first_row=first_row)
        logprobs: LogprobArray = logits_TV.float().log_softmax(dim=-1).cpu().numpy()
        return logprobs
