"""Scores with vLLM, in process: it batches what is in flight by itself, over one GPU or many.

Owns vLLM's life. What is asked and how answers become columns is `fast.py`'s and `stock.py`'s.
"""

# T = tokens of a sequence, V = vocabulary size

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections.abc import AsyncIterator, Coroutine, Iterable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from preceptor.wire import LogprobArray, TokenArray

from preceptor_server.config import EngineConfig
from preceptor_server.engines.base import Restore
from preceptor_server.engines.vllm import fast, stock
from preceptor_server.engines.vllm.adapters import Adapter, Adapters
from preceptor_server.engines.vllm.arguments import max_top_k
from preceptor_server.engines.vllm.checkpoint import end_token_ids, folder_of
from preceptor_server.engines.vllm.process_log import ProcessLog
from preceptor_server.engines.vllm.revision import revision_of_folder
from preceptor_server.engines.vllm.rows import MISSING, RowAnswer, RowQuestion, read_answer
from preceptor_server.engines.vllm.starting import StartedVllm, start_vllm
from preceptor_server.errors import EngineDiedError, WeightUpdateError
from preceptor_server.types import EngineInfo, GroupColumns, ScoreGroup

logger = logging.getLogger(__name__)

_BATCHES_IN_FLIGHT = 4
"""While vLLM computes one batch, the next are ready."""
_DEATH_POLL_SECONDS = 0.25
_SECONDS_UNTIL_REVIVED = 5.0
"""When callers of an engine that died are told to come back."""
_TASK = "token_embed"


class VllmEngine:
    """vLLM behind the Engine protocol."""

    def __init__(self, config: EngineConfig) -> None:
        self._config = config
        self._log = ProcessLog()
        self._vllm: StartedVllm | None = None
        self._folder = Path()
        self._revision = ""
        self._adapters = Adapters()
        self._numbers = itertools.count()

    def load(self) -> None:
        started = time.perf_counter()
        self._adapters.clear()
        self._vllm = start_vllm(self._config, self._log)
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
        in_flight = self._config.vllm.max_tokens_in_flight or _BATCHES_IN_FLIGHT * scheduler.max_num_batched_tokens
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
        )

    async def score(self, batch: Sequence[ScoreGroup]) -> list[GroupColumns]:
        score = self._score_fast if self._loaded.path == "fast" else self._score_stock
        return await _all([score(group) for group in batch])

    async def reference_logprobs(self, token_ids: TokenArray) -> LogprobArray:
        """The oracle, [T, V]: one request per prefix, without the prefix cache, of which only the last row is read.
        Fast path: all of its vocabulary; stock path: the distribution that vLLM would sample the next token from."""
        last = self._last_logprobs_fast if self._loaded.path == "fast" else self._last_logprobs_stock
        return np.stack([await last(token_ids[: stop + 1]) for stop in range(len(token_ids))])

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
                "adapter", "the server was started without adapters: set engine.vllm.arguments.enable_lora=true"
            )
        adapter = self._adapters.draft(name, folder)
        try:
            is_loaded = await self._loaded.llm.add_lora(_lora_request(adapter))
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

    async def _score_fast(self, group: ScoreGroup) -> GroupColumns:
        planned = fast.plan(group)
        async with self._using(group.adapter) as adapter:
            answers = await _all([self._ask(one.token_ids, one.question, adapter) for one in planned.requests])
        return fast.columns_of_group(group, planned, answers)

    async def _ask(self, token_ids: TokenArray, question: RowQuestion, adapter: Adapter | None) -> RowAnswer:
        answer = await self._encode(token_ids, question, adapter, reads_cache=True)
        if (answer.states_R == MISSING).any():
            logger.warning("prefix cache swallowed wanted rows, asking again without it tokens=%d", len(token_ids))
            answer = await self._encode(token_ids, question, adapter, reads_cache=False)
        if (answer.states_R == MISSING).any():
            raise RuntimeError("vLLM left rows out although it was told not to read its prefix cache")
        return answer

    async def _encode(
        self, token_ids: TokenArray, question: RowQuestion, adapter: Adapter | None, *, reads_cache: bool
    ) -> RowAnswer:
        from vllm import PoolingParams

        params = PoolingParams(
            task=_TASK,
            skip_reading_prefix_cache=not reads_cache,
            extra_kwargs=question.to_kwargs(),
            use_activation=False,
        )
        asked = self._loaded.llm.encode(
            _prompt(token_ids), params, self._next_id(), lora_request=adapter and _lora_request(adapter)
        )
        output = await self._final(asked)
        return read_answer(output.outputs.data.numpy(), question)

    async def _score_stock(self, group: ScoreGroup) -> GroupColumns:
        from vllm import SamplingParams

        # Flat lists instead of an object per entry, where this vLLM has them.
        flat = {"flat_logprobs": True} if hasattr(SamplingParams, "flat_logprobs") else {}
        params = SamplingParams(max_tokens=1, prompt_logprobs=group.top_k, detokenize=False, **flat)
        async with self._using(group.adapter) as adapter:
            outputs = await _all(
                [self._generate(stock.token_ids_of(group, one), params, adapter) for one in group.responses]
            )
        return tuple(
            stock.columns_of_response(group, response, output.prompt_logprobs)
            for response, output in zip(group.responses, outputs, strict=True)
        )

    async def _generate(self, token_ids: TokenArray, params: Any, adapter: Adapter | None) -> Any:  # Any: vLLM's own
        asked = self._loaded.llm.generate(
            _prompt(token_ids), params, self._next_id(), lora_request=adapter and _lora_request(adapter)
        )
        return await self._final(asked)

    async def _final(self, outputs: AsyncIterator[Any]) -> Any:  # Any: vLLM's RequestOutput or PoolingRequestOutput
        from vllm.v1.engine.exceptions import EngineDeadError

        final = None
        try:
            async for output in outputs:
                final = output
        except EngineDeadError as error:
            raise EngineDiedError(
                "vLLM's engine process ended; it is being started again", retry_after_seconds=_SECONDS_UNTIL_REVIVED
            ) from error
        if final is None or not final.finished:
            raise RuntimeError("vLLM ended a request without an answer")
        return final

    async def _last_logprobs_fast(self, token_ids: TokenArray) -> LogprobArray:
        size = self._loaded.config.model_config.get_vocab_size()
        question = RowQuestion(
            positions_R=np.array([len(token_ids) - 1]),
            sampled_ids_R=np.array([0]),
            candidates=None,
            top_k=size,
            temperature=1.0,
            cache_limit=0,
        )
        answer = await self._encode(token_ids, question, None, reads_cache=False)
        logprobs = np.empty(size, np.float32)
        logprobs[answer.support_ids_RK[0]] = answer.support_logprobs_RK[0]
        return logprobs

    async def _last_logprobs_stock(self, token_ids: TokenArray) -> LogprobArray:
        from vllm import SamplingParams

        params = SamplingParams(max_tokens=1, logprobs=-1, detokenize=False, skip_reading_prefix_cache=True)
        output = await self._generate(token_ids, params, None)
        logprobs = np.full(self._loaded.config.model_config.get_vocab_size(), np.nan, np.float32)
        for token_id, entry in output.outputs[0].logprobs[0].items():
            logprobs[token_id] = entry.logprob
        return logprobs

    async def _take_weights(self, folder: Path) -> None:
        """New weights into the same model; what the old ones left in the prefix cache is forgotten."""
        await self._loaded.llm.collective_rpc("reload_weights", kwargs={"weights_path": str(folder)})
        if not await self._loaded.llm.reset_prefix_cache():
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
        await self._loaded.llm.remove_lora(adapter.number)

    def _revision_of(self, folder: Path) -> str:
        config, vllm = self._config, self._loaded.config
        uses = f"{config.dtype} head={config.head_dtype} quantization={vllm.model_config.quantization}"
        return revision_of_folder(folder, uses=uses)

    def _next_id(self) -> str:
        return f"preceptor-{next(self._numbers)}"


_ResultT = TypeVar("_ResultT")


async def _all(coroutines: Iterable[Coroutine[Any, Any, _ResultT]]) -> list[_ResultT]:
    """Their results, in order of submission. The first error cancels the others, and is raised as it is."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one) for one in coroutines]
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from None
    return [task.result() for task in tasks]


def _prompt(token_ids: TokenArray) -> Any:  # Any: vLLM's TokensPrompt
    from vllm import TokensPrompt

    return TokensPrompt(prompt_token_ids=token_ids.tolist())


def _lora_request(adapter: Adapter) -> Any:  # Any: vLLM's LoRARequest
    from vllm.lora.request import LoRARequest

    return LoRARequest(lora_name=adapter.unique_name, lora_int_id=adapter.number, lora_path=str(adapter.folder))
