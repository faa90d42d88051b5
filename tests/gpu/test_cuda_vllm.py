"""The vllm engine on a CUDA device against transformers on the same one: both paths, eager and compiled.

It needs vLLM's CUDA build beside the tests: .venv-vllm/bin/pytest -m gpu -rP tests/gpu
"""

from __future__ import annotations

import asyncio
import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from preceptor_server.types import GroupColumns, ScoreGroup
from transformers import LlamaConfig, LlamaForCausalLM

from tests.tiny import save_tiny
from tests.vllm.serving import vllm_server
from tests.vllm.test_parity import Agreement, agreement_of, by_hf, plain, random_groups, score_all

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device, and torch finds none"),
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="needs vLLM's CUDA build"),
]

FP32_NATS = 2e-3
BF16_NATS = 1.0
COMPILED: dict[str, Any] = {"enforce_eager": False}  # Any: vLLM's engine arguments


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random, in the shape of SmolLM2-135M: heads of 64 dimensions, 49,152 tokens."""
    config = LlamaConfig(
        vocab_size=49_152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        max_position_embeddings=2048,
        initializer_range=0.06,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=2,
        pad_token_id=0,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return save_tiny(tmp_path_factory.mktemp("model"), LlamaForCausalLM(config).eval())


@pytest.fixture(scope="module")
def groups() -> list[ScoreGroup]:
    return random_groups(seed=2603)


@pytest.fixture(scope="module")
def expected(model: Path, groups: list[ScoreGroup]) -> list[GroupColumns]:
    return by_hf(model, groups)


def agreement_with(
    expected: list[GroupColumns],
    folder: Path,
    model: Path,
    groups: list[ScoreGroup],
    *,
    times: int = 1,
    **server: Any,  # Any: of vllm_server
) -> Agreement:
    """The last of `times` passes: the later ones find their prompts in the cache."""
    with vllm_server(folder, model, **server) as running:
        for _ in range(times):
            agreement = agreement_of(asyncio.run(score_all(running.address, groups)), expected)
            print(agreement)  # pytest -rP shows it
    return agreement


def assert_fp32(agreement: Agreement) -> None:
    assert max(agreement.support_nats, agreement.sampled_nats) <= FP32_NATS
    assert max(agreement.candidate_nats, agreement.entropy_nats) <= 2 * FP32_NATS  # at temperature 0.5
    assert agreement.overlap >= 0.998


@pytest.mark.parametrize("arguments", [{}, COMPILED], ids=["eager", "compiled"])
def test_fast_path_in_fp32(
    arguments: dict[str, Any], model: Path, groups: list[ScoreGroup], expected: list[GroupColumns], tmp_path: Path
) -> None:
    assert_fp32(agreement_with(expected, tmp_path, model, groups, times=2, arguments=arguments))


def test_stock_path_in_fp32(model: Path, groups: list[ScoreGroup], tmp_path: Path) -> None:
    taken = plain(groups)
    assert_fp32(agreement_with(by_hf(model, taken), tmp_path, model, taken, path="stock"))


@pytest.mark.parametrize(
    ("path", "arguments"),
    [("fast", {}), ("fast", COMPILED), ("stock", COMPILED)],
    ids=["fast eager", "fast compiled", "stock compiled"],
)
def test_bf16(path: str, arguments: dict[str, Any], model: Path, groups: list[ScoreGroup], tmp_path: Path) -> None:
    """Two orders of rounding to bf16 in thirty layers; at temperature 0.5 their difference counts twice."""
    taken = plain(groups) if path == "stock" else groups
    expected = by_hf(model, taken, dtype="bfloat16")
    agreement = agreement_with(
        expected, tmp_path, model, taken, times=2, path=path, dtype="bfloat16", arguments=arguments
    )
    assert agreement.support_nats <= BF16_NATS
    assert agreement.overlap >= 0.8
