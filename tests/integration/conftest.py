"""Servers that several tests share: nothing that a test does to one may hurt the next, and that is itself tested."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.servers import RunningServer, running_server


@pytest.fixture(scope="session")
def hf_server(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """A tiny random Llama behind a real socket."""
    with running_server(tmp_path_factory.mktemp("hf"), "--engine.model", str(tiny_folder)) as server:
        yield server


@pytest.fixture(scope="session")
def fake_server(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """The fake engine with the tiny tokenizer, behind a real socket."""
    arguments = ["--engine.kind", "fake", "--engine.tokenizer", str(tiny_folder)]
    with running_server(tmp_path_factory.mktemp("fake"), *arguments) as server:
        yield server
