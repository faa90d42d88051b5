"""Why vLLM did not start, in one line that names the setting to change."""

from __future__ import annotations

import re
from collections.abc import Sequence

from preceptor_server.errors import StartupError

_REASONS = (
    (
        r"less than desired GPU memory utilization",
        "other processes hold too much of the GPU's memory: end them, or lower "
        "engine.arguments.gpu_memory_utilization",
    ),
    (
        r"[Nn]o available memory for the cache|KV cache is needed|KV cache memory|kv_cache_memory|than the available",
        "there is too little memory for vLLM's KV cache: raise engine.arguments.gpu_memory_utilization or "
        "kv_cache_memory_bytes, or lower engine.max_model_len",
    ),
    (
        r"out of memory|OutOfMemory|can't allocate memory",
        "vLLM ran out of memory: lower engine.arguments.gpu_memory_utilization or max_num_batched_tokens, or "
        "raise tensor_parallel_size",
    ),
    (
        r"architectures? .*(not supported|unsupported|failed to be inspected)",
        "engine.model: vLLM does not support this architecture: set engine.kind=hf",
    ),
    (
        r"max_model_len|max_position_embeddings|max seq len",
        "engine.max_model_len does not fit the model: lower it",
    ),
    (
        r"assert inputs\.dtype in \[torch\.float16",
        "on a GPU vLLM's adapters take half precision only: set engine.dtype=bfloat16, or leave "
        "engine.arguments.enable_lora out",
    ),
    (
        r"head_dtype different from the model dtype",
        "engine.head_dtype=float32 does not fit a quantised head: set engine.head_dtype=model",
    ),
    (
        r"tensor.parallel|num_attention_heads.*divisible|[Ww]orld size",
        "engine.arguments.tensor_parallel_size does not fit the model or this machine",
    ),
)  # fmt: skip

_ERROR_LINE = re.compile(r"\b([A-Za-z_.]*(?:Error|Exception)\b: .*|assert .*)")
"""An assertion's own text stands in the traceback, and its error says nothing."""


def startup_error(error: BaseException, lines: Sequence[str]) -> StartupError:
    """The reason as vLLM's processes wrote it, or as `error` says where they wrote none."""
    found = [match.group(1) for line in lines if (match := _ERROR_LINE.search(line))]
    # The first error is the cause; the later ones say that something failed.
    told = found[0] if found else f"{type(error).__name__}: {error}"
    hint = next((hint for pattern, hint in _REASONS if re.search(pattern, f"{told} {error}")), None)
    if hint is None:
        return StartupError(f"vLLM did not start: {_shortened(told)}")
    return StartupError(f"{hint} ({_shortened(told)})")


def _shortened(text: str, length: int = 400) -> str:
    text = " ".join(text.split())
    return text if len(text) <= length else text[: length - 3] + "..."
