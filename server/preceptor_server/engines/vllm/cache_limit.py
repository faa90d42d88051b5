"""vLLM's schedulers, with a limit to what a request may take from the prefix cache.

A token that comes from the cache has no hidden state, so the rows that a request wants must not. Runs in vLLM's engine
core.
"""

from __future__ import annotations

from typing import Any

from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.scheduler import Scheduler

from preceptor_server.engines.vllm.rows import KEY


class _AsIfShorter:
    """A request as the cache lookup sees it: vLLM finds at most `num_tokens - 1` of its tokens."""

    def __init__(self, request: Any, num_tokens: int) -> None:  # Any: vLLM's Request
        self._request = request
        self.num_tokens = num_tokens

    def __getattr__(self, name: str) -> Any:
        return getattr(self._request, name)


def limit_cache_hits(manager: Any) -> None:  # Any: vLLM's KVCacheManager
    """Makes the manager's lookup heed `RowQuestion.cache_limit`."""
    look_up = manager.get_computed_blocks

    def limited(request: Any) -> Any:
        params = request.pooling_params
        question = (params.extra_kwargs or {}).get(KEY) if params is not None else None
        if question is None:
            return look_up(request)
        return look_up(_AsIfShorter(request, min(request.num_tokens, question["cache_limit"] + 1)))

    manager.get_computed_blocks = limited


class CacheLimitScheduler(Scheduler):  # type: ignore[misc]  # as Any: vLLM is not installed here
    """The scheduler of engines that do not schedule ahead."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        limit_cache_hits(self.kv_cache_manager)


class CacheLimitAsyncScheduler(AsyncScheduler):  # type: ignore[misc]  # as above
    """The scheduler of engines that schedule a step ahead."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        limit_cache_hits(self.kv_cache_manager)
