"""Asks a running vLLM: for the columns of a group, the fast way or the stock way, and for the self-test's oracle.

What is asked, and how answers become columns, is `fast.py`'s and `stock.py`'s.
"""

# V = vocabulary size

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import AsyncIterator, Coroutine, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import numpy as np
from preceptor.wire import LogprobArray, TokenArray

from preceptor_server.engines.vllm import fast, stock
from preceptor_server.engines.vllm.adapters import Adapter
from preceptor_server.engines.vllm.rows import MISSING, TASK, RowAnswer, RowQuestion, read_answer
from preceptor_server.engines.vllm.starting import StartedVllm
from preceptor_server.errors import EngineDiedError
from preceptor_server.types import GroupColumns, ScoreGroup

logger = logging.getLogger(__name__)

_SECONDS_UNTIL_REVIVED = 5.0
"""When callers of an engine that died are told to come back."""


class Asking:
    """The questions to one vLLM, by the path that it was started for."""

    def __init__(self, vllm: StartedVllm) -> None:
        self._llm = vllm.llm
        self._is_fast = vllm.path == "fast"
        self._vocabulary_size: int = vllm.config.model_config.get_vocab_size()
        self._numbers = itertools.count()

    async def score(self, group: ScoreGroup, adapter: Adapter | None) -> GroupColumns:
        score = self._score_fast if self._is_fast else self._score_stock
        return await score(group, adapter)

    async def last_logprobs(self, token_ids: TokenArray) -> LogprobArray:
        """The distribution after the last token, [V], without the prefix cache. Fast path: a row of its own, all of
        the vocabulary; stock path: what vLLM would sample the next token from."""
        last = self._last_logprobs_fast if self._is_fast else self._last_logprobs_stock
        return await last(token_ids)

    async def _score_fast(self, group: ScoreGroup, adapter: Adapter | None) -> GroupColumns:
        planned = fast.plan(group)
        answers = await all_of([self._ask(one.token_ids, one.question, adapter) for one in planned.requests])
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
            task=TASK,
            skip_reading_prefix_cache=not reads_cache,
            extra_kwargs=question.to_kwargs(),
            use_activation=False,
        )
        asked = self._llm.encode(
            _prompt(token_ids), params, self._next_id(), lora_request=adapter and lora_request(adapter)
        )
        output = await _final(asked)
        return read_answer(output.outputs.data.numpy(), question)

    async def _score_stock(self, group: ScoreGroup, adapter: Adapter | None) -> GroupColumns:
        from vllm import SamplingParams

        # Flat lists instead of an object per entry, where this vLLM has them.
        flat = {"flat_logprobs": True} if hasattr(SamplingParams, "flat_logprobs") else {}
        params = SamplingParams(max_tokens=1, prompt_logprobs=group.top_k, detokenize=False, **flat)
        outputs = await all_of(
            [self._generate(stock.token_ids_of(group, one), params, adapter) for one in group.responses]
        )
        return tuple(
            stock.columns_of_response(group, response, output.prompt_logprobs)
            for response, output in zip(group.responses, outputs, strict=True)
        )

    async def _generate(self, token_ids: TokenArray, params: Any, adapter: Adapter | None) -> Any:  # Any: vLLM's own
        asked = self._llm.generate(
            _prompt(token_ids), params, self._next_id(), lora_request=adapter and lora_request(adapter)
        )
        return await _final(asked)

    async def _last_logprobs_fast(self, token_ids: TokenArray) -> LogprobArray:
        question = RowQuestion(
            positions_R=np.array([len(token_ids) - 1]),
            sampled_ids_R=np.array([0]),
            candidates=None,
            top_k=self._vocabulary_size,
            temperature=1.0,
            cache_limit=0,
        )
        answer = await self._encode(token_ids, question, None, reads_cache=False)
        logprobs = np.empty(self._vocabulary_size, np.float32)
        logprobs[answer.support_ids_RK[0]] = answer.support_logprobs_RK[0]
        return logprobs

    async def _last_logprobs_stock(self, token_ids: TokenArray) -> LogprobArray:
        from vllm import SamplingParams

        params = SamplingParams(max_tokens=1, logprobs=-1, detokenize=False, skip_reading_prefix_cache=True)
        output = await self._generate(token_ids, params, None)
        logprobs = np.full(self._vocabulary_size, np.nan, np.float32)
        for token_id, entry in output.outputs[0].logprobs[0].items():
            logprobs[token_id] = entry.logprob
        return logprobs

    def _next_id(self) -> str:
        return f"preceptor-{next(self._numbers)}"


@contextmanager
def death_told() -> Iterator[None]:
    """vLLM's word for its end becomes EngineDiedError."""
    from vllm.v1.engine.exceptions import EngineDeadError

    try:
        yield
    except EngineDeadError as error:
        raise died() from error


def died() -> EngineDiedError:
    return EngineDiedError(
        "vLLM's engine process ended; it is being started again", retry_after_seconds=_SECONDS_UNTIL_REVIVED
    )


def lora_request(adapter: Adapter) -> Any:  # Any: vLLM's LoRARequest
    from vllm.lora.request import LoRARequest

    return LoRARequest(lora_name=adapter.unique_name, lora_int_id=adapter.number, lora_path=str(adapter.folder))


_ResultT = TypeVar("_ResultT")


async def all_of(coroutines: Iterable[Coroutine[Any, Any, _ResultT]]) -> list[_ResultT]:
    """Their results, in order of submission. The first error cancels the others, and is raised as it is."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one) for one in coroutines]
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from None
    return [task.result() for task in tasks]


async def _final(outputs: AsyncIterator[Any]) -> Any:  # Any: vLLM's RequestOutput or PoolingRequestOutput
    final = None
    with death_told():
        async for output in outputs:
            final = output
    if final is None or not final.finished:
        raise RuntimeError("vLLM ended a request without an answer")
    return final


def _prompt(token_ids: TokenArray) -> Any:  # Any: vLLM's TokensPrompt
    from vllm import TokensPrompt

    return TokensPrompt(prompt_token_ids=token_ids.tolist())
