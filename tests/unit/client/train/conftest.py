"""Parts that most tests of the trainer start from."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from preceptor_client.train.run.config import RunConfig
from preceptor_client.train.student.student import Student

from tests.unit.client.train.fake_scorer import FakeScorer
from tests.unit.client.train.tiny import save_tiny_model, tiny_student


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny matrices gain nothing from more, and the machine is shared."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def student() -> Student:
    return tiny_student(seed=0)


@pytest.fixture
def scorer() -> FakeScorer:
    return FakeScorer(teacher=tiny_student(seed=1))


@pytest.fixture
def settings(tmp_path: Path) -> dict[str, dict[str, Any]]:  # Any: the leaves are whatever TOML holds
    """A run of 6 steps on a tiny model; a test changes what it is about and validates them."""
    train = tmp_path / "train.jsonl"
    rows = [{"prompt": f"say {word}", "answer": word} for word in ("red", "green", "blue", "grey", "pink")]
    train.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {
        "student": {"model": str(save_tiny_model(tmp_path / "student"))},
        "teacher": {"address": "127.0.0.1:1", "top_k": 8, "patience_seconds": 60.0},
        "data": {"train": str(train)},
        "rollout": {"prompts_per_step": 3, "max_new_tokens": 6, "batch_size": 4, "responses_per_prompt": 2},
        "optimizer": {"learning_rate": 1e-3, "micro_batch_size": 2},
        "run": {"directory": str(tmp_path / "run"), "num_steps": 6, "checkpoint_every_steps": 3},
        "evaluation": {"max_new_tokens": 4},
    }


@pytest.fixture
def config(settings: dict[str, dict[str, Any]]) -> RunConfig:
    return RunConfig.model_validate(settings)
