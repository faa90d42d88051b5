"""From the server's settings to vLLM's own: which arguments are the user's, which are ours, and what fits."""

from __future__ import annotations

import difflib
from typing import Any, Literal

from preceptor_server.engines.config import VllmConfig
from preceptor_server.engines.vllm.rows import ROWS_PER_CHUNK
from preceptor_server.errors import StartupError

OURS = {
    "model": "engine.model",
    "dtype": "engine.dtype",
    "max_model_len": "engine.max_model_len",
    "trust_remote_code": "engine.trust_remote_code",
    "tokenizer": "engine.tokenizer",
    "runner": "engine.path",
    "convert": "engine.path",
    "scheduler_cls": "engine.path",
    "skip_tokenizer_init": None,
}
"""Arguments that follow from other settings, and which; None where there is nothing to set."""

Path = Literal["fast", "stock"]


def vllm_arguments(config: VllmConfig, *, path: Path, known: set[str]) -> dict[str, Any]:
    """Keyword arguments for `AsyncEngineArgs`, of which `known` are the names.

    Raises StartupError where an argument is unknown, or follows from another setting.
    """
    given = dict(config.arguments)
    for name in given:
        if name in OURS:
            setting = OURS[name]
            raise StartupError(
                f"engine.arguments.{name}: "
                + (f"set {setting} instead" if setting else "the server decides it: leave it out")
            )
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            raise StartupError(
                f"engine.arguments.{name}: this vLLM has no such engine argument"
                + (f"; did you mean {near[0]}?" if near else "")
            )
    overrides = dict(given.pop("hf_overrides", {}))
    overrides.setdefault("head_dtype", "float32" if config.head_dtype == "float32" else "model")
    given.pop("max_logprobs", None)
    ours = {
        "model": config.model,
        "dtype": config.dtype,
        "max_model_len": config.max_model_len,
        "trust_remote_code": config.trust_remote_code,
        "hf_overrides": overrides,
        "skip_tokenizer_init": True,
        "runner": "pooling" if path == "fast" else "generate",
    }
    if path == "stock":
        ours["max_logprobs"] = -1  # our own limit is told beforehand, by GetInfo
    else:
        ours["additional_config"] = {
            **given.pop("additional_config", {}),
            ROWS_PER_CHUNK: config.rows_per_head_chunk,
        }
        given.setdefault("enable_prefix_caching", True)
        given.setdefault("enable_chunked_prefill", True)
    return {"disable_log_stats": True, **given, **ours}


def max_top_k(config: VllmConfig) -> int | None:
    """The user's own `max_logprobs`, which bounds K; None where there is none, or it says so."""
    limit = config.arguments.get("max_logprobs", -1)
    return None if limit == -1 else int(limit)
