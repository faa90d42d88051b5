"""Heads of every kind, tied, untied, scaled, soft-capped and split over two ranks, against the hf engine."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pytest
from preceptor_server.types import GroupColumns, ScoreGroup

from tests.unit.server.candidate_groups import with_candidates
from tests.unit.server.groups import random_batch
from tests.vllm.models import MODELS, VOCABULARY_SIZE, save_model
from tests.vllm.serving import vllm_server
from tests.vllm.test_parity import Columns, agreement_of, by_hf, score_all

pytestmark = pytest.mark.vllm

FP32_NATS = 5e-4


def random_groups() -> list[ScoreGroup]:
    rng = np.random.default_rng(5)
    batches = [random_batch(rng, vocabulary_size=VOCABULARY_SIZE) for _ in range(10)]
    return [group for batch in batches for group in with_candidates(batch, rng, vocabulary_size=VOCABULARY_SIZE)]


def assert_agree(answers: list[Columns], expected: list[GroupColumns]) -> None:
    agreement = agreement_of(answers, expected)
    print(agreement)
    assert agreement.num_positions > 200
    assert max(agreement.support_nats, agreement.sampled_nats, agreement.candidate_nats) <= FP32_NATS
    assert agreement.entropy_nats <= FP32_NATS
    assert agreement.overlap >= 0.999


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if "gemma2" in name else pytest.mark.vllm_long) for name in MODELS]
)
def test_a_head_of_this_kind(name: str, tmp_path: Path) -> None:
    model, groups = save_model(tmp_path / "model", name), random_groups()
    with vllm_server(tmp_path / "server", model, arguments={"block_size": 32}) as server:
        answers = asyncio.run(score_all(server.address, groups))
    assert_agree(answers, by_hf(model, groups))


@pytest.mark.vllm_long
def test_a_head_split_over_two_ranks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pipeline parallel does not run on CPUs, nor does vLLM's Ray executor: docs/scaling.md."""
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "0|1")  # a core for each
    model, groups = save_model(tmp_path / "model"), random_groups()
    with vllm_server(tmp_path / "server", model, arguments={"block_size": 32, "tensor_parallel_size": 2}) as server:
        answers = asyncio.run(score_all(server.address, groups))
    assert_agree(answers, by_hf(model, groups))
