"""The hf engine of one tree of the server: python -m bench.engine_worker

bench.engine_trees asks it. Which server is measured is a matter of PYTHONPATH, so this file runs with both.
"""

from __future__ import annotations

import asyncio
import importlib
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from bench.engine import GGUF_FILE, workloads
from bench.workers import Answer, Request, serve


def hf_config(**settings: str) -> Any:  # Any: of the tree that is measured, whichever that is
    """The engine's settings, from their module in this tree, else from the one that they had in older ones."""
    try:
        return importlib.import_module("preceptor_server.engines.config").HfConfig(**settings)
    except ModuleNotFoundError:
        return importlib.import_module("preceptor_server.config").EngineConfig(**settings)


def hf_engine(config: Any) -> Any:  # Any: as above
    """The engine, likewise."""
    try:
        module = importlib.import_module("preceptor_server.engines.hf.engine")
    except ModuleNotFoundError:
        module = importlib.import_module("preceptor_server.engines.hf")
    return module.HfEngine(config)


def prepare(folder: str) -> Callable[[Request], Answer]:
    """Loads the model; the answer to {"workload": name} is its seconds, and the sum of the sampled logprobs."""
    engine = hf_engine(hf_config(model=folder, gguf_file=GGUF_FILE))
    engine.load()
    batches = workloads()

    def answer(request: Request) -> Answer:
        started = time.perf_counter()
        groups = asyncio.run(engine.score(batches[str(request["workload"])]))
        seconds = time.perf_counter() - started
        total = sum(float(np.sum(one.sampled_logprobs_N, dtype=np.float64)) for group in groups for one in group)
        return {"seconds": seconds, "sum_logprobs": total}

    return answer


if __name__ == "__main__":
    serve(lambda: prepare(sys.argv[1]))
