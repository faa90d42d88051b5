"""vLLM lives in an environment of its own (`make test-vllm`); elsewhere these files cannot even be imported."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy.local.smollm2 import saved_folder
from tests.integration.servers import RunningServer
from tests.vllm.serving import vllm_server

if importlib.util.find_spec("vllm") is None:
    collect_ignore_glob = ["test_*.py"]


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """SmolLM2-135M-Instruct in fp32."""
    return saved_folder(Path("runs/models"))


@pytest.fixture(scope="session")
def fast_server(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """SmolLM2 in fp32 by the fast path, its prefix cache on."""
    with vllm_server(tmp_path_factory.mktemp("fast"), smollm2) as server:
        yield server
