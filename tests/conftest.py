"""Fixtures that more than one tier uses."""

from __future__ import annotations

import os
from pathlib import Path

# Tests load models from folders that they made; a name that slipped through must fail, not reach for a hub.
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
import torch

from tests.tiny import save_tiny, tiny_llama


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny random Llama and its tokenizer."""
    return save_tiny(tmp_path_factory.mktemp("tiny"), tiny_llama())


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)
