"""A teacher that takes new weights over a real socket, against servers that were started on those weights."""

from __future__ import annotations

import asyncio
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from preceptor.wire import LogprobDtype
from preceptor_client import GroupScores, TeacherClient, TeacherIds, WeightUpdate
from preceptor_client.errors import InvalidRequestError
from safetensors.torch import load_file, save_file

from tests.engines.fake import fake_arguments
from tests.integration.servers import MAY_UPDATE_WEIGHTS, RunningServer, running_server
from tests.tiny import save_tiny, tiny_llama

# T = tokens of a response, N = its scored positions

REPOSITORY = Path(__file__).resolve().parents[2]
DOCUMENT = (REPOSITORY / "docs" / "weights.md").read_text()
COLUMNS = ("support_ids_NK", "support_logprobs_NK", "sampled_logprobs_N", "log_tail_mass_N", "entropies_N")
OLD, NEW = 3, 4
"""Seeds of the two models."""


@dataclass(frozen=True, kw_only=True)
class Updatable:
    """A server on the old weights, and the folder that it takes new ones from."""

    server: RunningServer
    root: Path


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Holds `old` and `new`, two models that fit each other, and some that do not."""
    root = tmp_path_factory.mktemp("weights")
    save_tiny(root / "old", tiny_llama(seed=OLD))
    for name in ("new", "step-100"):
        save_tiny(root / name, tiny_llama(seed=NEW))
    save_tiny(root / "longer", tiny_llama(seed=NEW, max_length=256))
    save_tiny(root / "diverged", tiny_llama(seed=NEW))
    path = root / "diverged" / "model.safetensors"
    tensors = load_file(path)
    tensors["model.norm.weight"][5] = float("nan")
    save_file(tensors, path, metadata={"format": "pt"})
    (root / "empty").mkdir()
    return root


@pytest.fixture(scope="module")
def updatable(folders: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Updatable]:
    settings = ["--engine.model", str(folders / "old"), "--engine.weights-folder", str(folders), *MAY_UPDATE_WEIGHTS]
    with running_server(tmp_path_factory.mktemp("server"), *settings) as server:
        yield Updatable(server=server, root=folders)


async def score(address: str, *, seed: int = 0) -> GroupScores:
    rng = np.random.default_rng(seed)
    async with TeacherClient(address) as client:
        return await client.score(
            TeacherIds(rng.integers(3, 259, 12)),
            [rng.integers(3, 259, 20), rng.integers(3, 259, 5)],
            top_k=16,
            logprob_dtype=LogprobDtype.F32,
            batch_invariant=True,
        )


async def update(address: str, path: str) -> WeightUpdate:
    async with TeacherClient(address) as client:
        return await client.update_weights(path)


async def revision_of(address: str) -> str:
    async with TeacherClient(address) as client:
        [teacher] = (await client.info()).teachers
        assert teacher.capabilities.weight_updates
        return teacher.revision


def assert_equal(a: GroupScores, b: GroupScores) -> None:
    """To the bit, the revision too."""
    assert a.revision == b.revision
    for x, y in zip(a.responses, b.responses, strict=True):
        for name in COLUMNS:
            np.testing.assert_array_equal(getattr(x, name), getattr(y, name))


async def test_answers_after_an_update_are_those_of_a_server_started_on_the_new_weights(
    updatable: Updatable, tmp_path: Path
) -> None:
    address = updatable.server.address
    before = await score(address)
    done = await update(address, "new")
    after = await score(address)
    with running_server(tmp_path, "--engine.model", str(updatable.root / "new")) as fresh:
        assert_equal(after, await score(fresh.address))
    assert (done.previous_revision, done.revision) == (before.revision, after.revision)
    assert before.revision != after.revision == await revision_of(address)
    assert np.abs(after.responses[0].sampled_logprobs_N - before.responses[0].sampled_logprobs_N).max() > 0.1
    assert done.paused_ms > 0
    # And back again, to the bit.
    assert (await update(address, "old")).revision == before.revision
    assert_equal(await score(address), before)


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("nowhere", "is no folder inside"),
        ("../", "lies outside"),
        ("empty", "holds no config.json"),
        ("longer", r"another config .*max_position_embeddings \(512, not 256\)"),
        ("diverged", "the new weights fail the self-test"),
    ],
)
async def test_weights_that_cannot_serve_leave_the_old_ones_serving(updatable: Updatable, path: str, says: str) -> None:
    before = await score(updatable.server.address)
    with pytest.raises(InvalidRequestError, match=says) as caught:
        await update(updatable.server.address, path)
    assert (caught.value.field, caught.value.reason) == ("path", "WEIGHT_UPDATE_FAILED")
    assert str(updatable.root) not in str(caught.value)
    assert_equal(await score(updatable.server.address), before)
    assert await revision_of(updatable.server.address) == before.revision


async def test_answers_amid_updates_are_wholly_of_the_weights_that_they_name(updatable: Updatable) -> None:
    address = updatable.server.address
    expected: dict[str, GroupScores] = {}
    for path in ("new", "old"):
        await update(address, path)
        answer = await score(address)
        expected[answer.revision] = answer
    assert len(expected) == 2
    answers: list[GroupScores] = []

    async def keep_asking(until: asyncio.Event) -> None:
        while not until.is_set():
            answers.append(await score(address))

    done = asyncio.Event()
    askers = [asyncio.create_task(keep_asking(done)) for _ in range(4)]
    for path in ("new", "old", "new", "old"):
        await update(address, path)
        await asyncio.sleep(0.1)
    done.set()
    await asyncio.gather(*askers)
    assert {answer.revision for answer in answers} == set(expected)
    for answer in answers:
        assert_equal(answer, expected[answer.revision])


async def test_hf_says_who_serves_adapters(updatable: Updatable) -> None:
    async with TeacherClient(updatable.server.address) as client:
        with pytest.raises(InvalidRequestError, match="only 'vllm' does"):
            await client.update_weights("new", adapter="law")
        with pytest.raises(InvalidRequestError, match="hosts none") as caught:
            await client.update_weights(adapter="law", unload=True)
    assert caught.value.reason == "UNKNOWN_ADAPTER"


async def test_server_without_a_folder_for_weights_takes_none(hf_server: RunningServer) -> None:
    async with TeacherClient(hf_server.address) as client:
        assert not (await client.info()).teachers[0].capabilities.weight_updates
        with pytest.raises(InvalidRequestError, match="weights_folder") as caught:
            await client.update_weights("new")
    assert caught.value.reason == "WEIGHT_UPDATES_OFF"


def document_commands(program: str) -> list[list[str]]:
    lines = re.findall(rf"^\$ {program} (.*)$", DOCUMENT, re.MULTILINE)
    return [shlex.split(line.split("  #")[0]) for line in lines]


async def test_what_the_document_types_works_on_a_teacher_with_adapters(tmp_path: Path) -> None:
    for name, seed in (("step-100", 7), ("law-3", 8)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "seed").write_text(str(seed))
    settings = [*fake_arguments(), "--engine.weights-folder", str(tmp_path), *MAY_UPDATE_WEIGHTS]
    commands = document_commands("preceptor weights")
    assert len(commands) == 3
    with running_server(tmp_path / "server", *settings) as server:
        printed = []
        for index, command in enumerate(commands):
            if index == 2:
                await ask_the_adapter(server.address)
            arguments = [server.address if word == "127.0.0.1:50051" else word for word in command]
            program = [sys.executable, "-m", "preceptor_client.cli", "weights", *arguments]
            result = await asyncio.to_thread(subprocess.run, program, capture_output=True, text=True, timeout=60)
            assert result.returncode == 0, result.stderr
            printed.append(result.stdout)
        [code] = re.findall(r"```python\n(.*?)```", DOCUMENT, re.DOTALL)
        program = [sys.executable, "-c", code.replace("127.0.0.1:50051", server.address)]
        result = await asyncio.to_thread(subprocess.run, program, capture_output=True, text=True, timeout=60)
    assert [text.split(";")[0].strip() for text in printed] == [
        "teacher: revision fake-256-7, before it fake-256",
        "adapter law: revision fake-256-7+8, which is new",
        "adapter law: revision fake-256-7+8 was taken away",
    ]
    assert result.stdout.startswith("fake-256-7 -> fake-256-7 "), result.stderr


async def ask_the_adapter(address: str) -> None:
    async with TeacherClient(address) as client:
        assert (await client.info()).teachers[0].adapters == {"law": "fake-256-7+8"}
        plain = await client.score(TeacherIds([1, 2]), [[3, 4]], top_k=4)
        adapted = await client.score(TeacherIds([1, 2]), [[3, 4]], top_k=4, adapter="law")
        assert (plain.revision, adapted.revision) == ("fake-256-7", "fake-256-7+8")
        difference_N = plain.responses[0].sampled_logprobs_N - adapted.responses[0].sampled_logprobs_N
        assert np.abs(difference_N).max() > 0.1
        with pytest.raises(InvalidRequestError, match="'chess' is not loaded: loaded are 'law'") as caught:
            await client.score(TeacherIds([1, 2]), [[3, 4]], top_k=4, adapter="chess")
        assert (caught.value.field, caught.value.reason) == ("adapter", "UNKNOWN_ADAPTER")


async def test_teacher_without_entropies_scores_all_else(tmp_path: Path) -> None:
    with running_server(tmp_path, *fake_arguments(computes_entropies=False)) as server:
        async with TeacherClient(server.address) as client:
            assert not (await client.info()).teachers[0].capabilities.entropies
            scores = await client.score(TeacherIds([1, 2]), [[3, 4], [5]], top_k=4)
    assert [response.entropies_N for response in scores.responses] == [None, None]
    assert [len(response.sampled_logprobs_N) for response in scores.responses] == [2, 1]
