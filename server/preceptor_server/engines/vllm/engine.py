"""vLLM, in process, as an engine: its life, its weights and adapters. `asking.py` asks it."""

# T = tokens of a sequence, V = vocabulary size

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from preceptor.wire import LogprobArray, TokenArray

from preceptor_server.engines.base import Restore
from preceptor_server.engines.config import VllmConfig
from preceptor_server.engines.vllm.adapters import Adapter, Adapters
from preceptor_server.engines.vllm.arguments import max_top_k
from preceptor_server.engines.vllm.asking import Asking, all_of, death_told, died, lora_request
from preceptor_server.engines.vllm.checkpoint import end_token_ids, folder_of
from preceptor_server.engines.vllm.process_log import ProcessLog
from preceptor_server.engines.vllm.revision import revision_of_folder
from preceptor_server.engines.vllm.starting import StartedVllm, start_vllm
from preceptor_server.errors import EngineDiedError, WeightUpdateError
from preceptor_server.types import EngineInfo, GroupColumns, ScoreGroup

logger = logging.getLogger(__name__)

_BATCHES_IN_FLIGHT = 4
"""While vLLM computes one batch, the next are ready."""
_DEATH_POLL_SECONDS = 0.25

_ResultT = TypeVar("_ResultT")


class VllmEngine:
    """vLLM behind the Engine protocol."""

    def __init__(self, config: VllmConfig) -> None:
        self._config = config
        self._log = ProcessLog()
        self._vllm: StartedVllm | None = None
        self._asker: Asking | None = None
        self._folder = Path()
        self._revision = ""
        self._adapters = Adapters()

    def load(self) -> None:
        started = time.perf_counter()
        self._adapters.clear()
        self._vllm = start_vllm(self._config, self._log)
        self._asker = Asking(self._vllm)
        self._folder = folder_of(self._config.model)
        self._revision = self._revision_of(self._folder)
        logger.info(
            "vllm started path=%s model=%s revision=%s seconds=%.1f",
            self._vllm.path, self._config.model, self._revision, time.perf_counter() - started,
        )  # fmt: skip

    def info(self) -> EngineInfo:
        vllm, is_fast = self._loaded, self._loaded.path == "fast"
        model, scheduler = vllm.config.model_config, vllm.config.scheduler_config
        # The stock path needs room for the token that vLLM insists on generating.
        max_model_len = model.max_model_len if is_fast else model.max_model_len - 1
        in_flight = self._config.max_tokens_in_flight or _BATCHES_IN_FLIGHT * scheduler.max_num_batched_tokens
        return EngineInfo(
            engine="vllm",
            model=self._config.model if not Path(self._config.model).is_dir() else Path(self._config.model).name,
            revision=self._revision,
            dtype=self._config.dtype,
            device=vllm.config.device_config.device_type,
            vocabulary_size=model.get_vocab_size(),
            max_model_len=max_model_len,
            end_token_ids=end_token_ids(self._folder, model.hf_text_config),
            applies_temperature=is_fast,
            is_batch_invariant_on_request=False,
            min_shared_prefix=vllm.config.cache_config.block_size if is_fast else None,
            scores_candidates=is_fast,
            computes_entropies=is_fast,
            max_top_k=max_top_k(self._config),
            batches_itself=True,
            max_tokens_in_flight=in_flight,
            adapters=self._adapters.revisions(base=self._revision),
            remedy=f"Try engine.path={'stock' if is_fast else 'fast'}, or engine.kind=hf",
        )

    async def score(self, batch: Sequence[ScoreGroup]) -> list[GroupColumns]:
        return await all_of([self._score(group) for group in batch])

    async def reference_logprobs(self, token_ids: TokenArray, *, first_row: int = 0) -> LogprobArray:
        """The oracle: one request per prefix, of which only the last row is read."""
        last = self._asking.last_logprobs
        return np.stack([await last(token_ids[: stop + 1]) for stop in range(first_row, len(token_ids))])

    def close(self) -> None:
        if self._vllm is not None:
            self._vllm.llm.shutdown()
            self._vllm = None

    async def wait_until_dead(self) -> None:
        while not self._loaded.llm.errored:
            await asyncio.sleep(_DEATH_POLL_SECONDS)

    async def load_weights(self, folder: Path) -> Restore:
        """In place, so the way back is to load the old ones again."""
        old, restore = self._folder, partial(self._take_weights, self._folder)
        try:
            await self._take_weights(folder)
        except EngineDiedError:
            raise  # nothing is left to bring back: what comes to life again has the configured weights
        except Exception as error:
            logger.exception("weights could not be loaded folder=%s", folder)
            await restore()
            raise WeightUpdateError(
                "path", f"vLLM could not load {folder.name}, {old.name} serves on: {error}"
            ) from error
        return restore

    async def load_adapter(self, name: str, folder: Path) -> None:
        if self._loaded.config.lora_config is None:
            raise WeightUpdateError(
                "adapter", "the server was started without adapters: set engine.arguments.enable_lora=true"
            )
        adapter = self._adapters.draft(name, folder)
        try:
            is_loaded = await self._unless_dead(self._loaded.llm.add_lora(lora_request(adapter)))
        except EngineDiedError:
            raise
        except Exception as error:
            raise WeightUpdateError("path", f"vLLM could not load the adapter {folder.name}: {error}") from error
        if not is_loaded:
            raise WeightUpdateError("path", f"vLLM refused the adapter {folder.name}; the server's log says why")
        replaced = self._adapters.publish(adapter)
        if replaced is not None:
            await self._remove_when_idle(replaced)

    async def unload_adapter(self, name: str) -> None:
        await self._remove_when_idle(self._adapters.withdraw(name))

    @property
    def _loaded(self) -> StartedVllm:
        assert self._vllm is not None, "load() comes first"
        return self._vllm

    @property
    def _asking(self) -> Asking:
        assert self._asker is not None, "load() comes first"
        return self._asker

    async def _score(self, group: ScoreGroup) -> GroupColumns:
        async with self._using(group.adapter) as adapter:
            return await self._asking.score(group, adapter)

    async def _take_weights(self, folder: Path) -> None:
        """New weights into the same model; what the old ones left in the prefix cache is forgotten."""
        llm = self._loaded.llm
        await self._unless_dead(llm.collective_rpc("reload_weights", kwargs={"weights_path": str(folder)}))
        if not await self._unless_dead(llm.reset_prefix_cache()):
            raise RuntimeError("vLLM could not empty its prefix cache")
        self._folder, self._revision = folder, self._revision_of(folder)

    @asynccontextmanager
    async def _using(self, name: str) -> AsyncIterator[Adapter | None]:
        adapter = self._adapters.get(name) if name else None
        if adapter is not None:
            adapter.num_in_flight += 1
        try:
            yield adapter
        finally:
            if adapter is not None:
                adapter.num_in_flight -= 1

    async def _remove_when_idle(self, adapter: Adapter) -> None:
        while adapter.num_in_flight:
            await asyncio.sleep(_DEATH_POLL_SECONDS)
        await self._unless_dead(self._loaded.llm.remove_lora(adapter.number))

    async def _unless_dead(self, call: Coroutine[Any, Any, _ResultT]) -> _ResultT:  # Any: unused channels
        """What vLLM answers. Whoever waits for an answer when vLLM's process ends would wait for ever."""
        answer, death = asyncio.ensure_future(call), asyncio.ensure_future(self.wait_until_dead())
        try:
            await asyncio.wait({answer, death}, return_when=asyncio.FIRST_COMPLETED)
            if not answer.done():
                raise died()
            with death_told():
                return answer.result()
        finally:
            answer.cancel()
            death.cancel()

    def _revision_of(self, folder: Path) -> str:
        config, vllm = self._config, self._loaded.config
        uses = f"{config.dtype} head={config.head_dtype} quantization={vllm.model_config.quantization}"
        return revision_of_folder(folder, uses=uses)
