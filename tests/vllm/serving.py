"""preceptor-server over vLLM, as a process of its own: uncompiled, with a small cache, so that it starts in seconds."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.integration.servers import RunningServer, running_server

START_SECONDS = 400
CACHE_BYTES = 1 << 30
MAX_MODEL_LEN = 1024


def engine_arguments(**arguments: Any) -> str:  # Any: vLLM's engine arguments
    """As JSON. What VLLM_TEST_ARGUMENTS holds, JSON too, comes first: a share of a GPU that others use, say."""
    machine = json.loads(os.environ.get("VLLM_TEST_ARGUMENTS", "{}"))
    return json.dumps({"enforce_eager": True, "kv_cache_memory_bytes": CACHE_BYTES, **machine, **arguments})


@contextmanager
def vllm_server(
    folder: Path,
    model: Path,
    *more: str,
    path: str = "fast",
    dtype: str = "float32",
    arguments: dict[str, Any] | None = None,
) -> Iterator[RunningServer]:
    """A server for the length of the block; its log lies in `folder`."""
    with running_server(
        folder,
        *("--engine.kind", "vllm", "--engine.model", str(model), "--engine.dtype", dtype, "--engine.path", path),
        *(
            "--engine.max-model-len",
            str(MAX_MODEL_LEN),
            "--engine.arguments",
            engine_arguments(**(arguments or {})),
        ),
        *more,
        start_seconds=START_SECONDS,
    ) as server:
        yield server
