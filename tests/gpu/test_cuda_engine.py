"""The hf engine on a CUDA device against the same weights on the CPU."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pytest
import torch
from preceptor_server.engines.config import HfConfig
from preceptor_server.engines.hf.engine import HfEngine
from preceptor_server.types import GroupColumns, ResponseToScore, ScoreGroup

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device, and torch finds none"),
]

TOLERANCE_NATS = {"float32": 2e-3, "bfloat16": 0.5}


def groups() -> list[ScoreGroup]:
    rng = np.random.default_rng(0)

    def response(length: int) -> ResponseToScore:
        return ResponseToScore(ids_T=rng.integers(0, 259, length), score_mask_T=np.ones(length, np.bool_))

    shared = rng.integers(0, 259, 40)
    return [
        ScoreGroup(
            prompt_ids_P=np.concatenate([shared, rng.integers(0, 259, 5 + index)]),
            responses=(response(30), response(1), response(7)),
            top_k=(2, 5, 32, 64)[index % 4],
            temperature=(0.5, 1.0, 2.0)[index % 3],
        )
        for index in range(24)
    ]


def score(folder: Path, device: str, dtype: str) -> list[GroupColumns]:
    engine = HfEngine(HfConfig.model_validate({"model": str(folder), "device": device, "dtype": dtype}))
    engine.load()
    try:
        return asyncio.run(engine.score(groups()))
    finally:
        engine.close()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_cuda_agrees_with_the_cpu(tiny_folder: Path, dtype: str) -> None:
    on_cpu, on_cuda = score(tiny_folder, "cpu", "float32"), score(tiny_folder, "cuda", dtype)
    for expected, seen in zip(on_cpu, on_cuda, strict=True):
        for a, b in zip(expected, seen, strict=True):
            difference = np.abs(a.sampled_logprobs_N - b.sampled_logprobs_N).max()
            assert difference <= TOLERANCE_NATS[dtype]
            assert np.abs(np.exp(a.log_tail_mass_N) - np.exp(b.log_tail_mass_N)).max() <= TOLERANCE_NATS[dtype]
