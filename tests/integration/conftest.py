"""Servers that several tests share: nothing that a test does to one may hurt the next, and that is itself tested."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from preceptor_client import cli

from tests.engines.fake import fake_arguments
from tests.integration.example_runs import ExampleRuns
from tests.integration.servers import MAY_UPDATE_WEIGHTS, RunningServer, running_server
from tests.integration.tool_pupil import save_stranger
from tests.integration.trainers import TrainHere
from tests.tiny import save_tiny, tiny_llama


@pytest.fixture(scope="session")
def hf_server(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """A tiny random Llama behind a real socket."""
    arguments = ["--engine.model", str(tiny_folder), *MAY_UPDATE_WEIGHTS]
    with running_server(tmp_path_factory.mktemp("hf"), *arguments) as server:
        yield server


@pytest.fixture(scope="session")
def fake_server(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """The fake engine with the tiny tokenizer, behind a real socket."""
    arguments = [*fake_arguments(), "--engine.tokenizer", str(tiny_folder)]
    with running_server(tmp_path_factory.mktemp("fake"), *arguments) as server:
        yield server


@pytest.fixture(scope="session")
def other_tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama with other weights than `tiny_folder`'s."""
    return save_tiny(tmp_path_factory.mktemp("other-teacher"), tiny_llama(seed=5))


@pytest.fixture(scope="session")
def other_hf_server(other_tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """A second teacher."""
    with running_server(tmp_path_factory.mktemp("other-hf"), "--engine.model", str(other_tiny_folder)) as server:
        yield server


@pytest.fixture(scope="session")
def stranger_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """A teacher with another tokenizer, whose chat template knows tools."""
    folder = save_stranger(tmp_path_factory.mktemp("stranger"), seed=5)
    with running_server(tmp_path_factory.mktemp("stranger-hf"), "--engine.model", str(folder)) as server:
        yield server


@pytest.fixture(scope="session")
def example_student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama with other weights than the teachers'."""
    return save_tiny(tmp_path_factory.mktemp("example-student"), tiny_llama(seed=1))


@pytest.fixture
def examples(hf_server: RunningServer, example_student: Path, tmp_path: Path) -> ExampleRuns:
    """Trains what stands in examples/."""
    return ExampleRuns(folder=tmp_path / "example", student=example_student, address=hf_server.address)


@pytest.fixture
def train_here(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> TrainHere:
    """`preceptor train` in this process, which has its imports: what it does not catch fails the test, as a traceback
    would show."""
    monkeypatch.setenv("COLUMNS", "400")

    def train(settings: Path) -> tuple[int, str]:
        capsys.readouterr()
        status = cli.main(["train", "@", str(settings)])
        printed = capsys.readouterr()
        return status, printed.err if status else printed.out

    return train
