"""vLLM's processes die, requests are given up, starts fail: nothing is left behind, and everybody is told."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import grpc
import numpy as np
import psutil
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from preceptor_client import TeacherClient, TeacherIds
from preceptor_client.errors import InvalidRequestError, NotImplementedByServerError, TeacherUnavailableError

from tests.integration.servers import MAY_UPDATE_WEIGHTS, RunningServer, run_server_to_its_end
from tests.vllm.models import VOCABULARY_SIZE, save_model
from tests.vllm.serving import MAX_MODEL_LEN, START_SECONDS, engine_arguments, vllm_server

pytestmark = pytest.mark.vllm


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("model"))


def engine_process(server: RunningServer) -> psutil.Process:
    """vLLM's engine core, by the name that it gives itself."""
    return next(
        child for child in psutil.Process(server.process.pid).children() if "EngineCore" in "".join(child.cmdline())
    )


async def health(address: str) -> int:
    async with grpc.aio.insecure_channel(address) as channel:
        answer = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=10)
        return int(answer.status)


async def wait_for_health(address: str, status: int) -> None:
    deadline = time.monotonic() + START_SECONDS
    while await health(address) != status:
        assert time.monotonic() < deadline
        await asyncio.sleep(0.1)


def test_an_engine_that_dies_is_told_and_comes_back(model: Path, tmp_path: Path) -> None:
    async def run(server: RunningServer) -> None:
        rng = np.random.default_rng(0)
        prompt, response = rng.integers(0, VOCABULARY_SIZE, 400), rng.integers(0, VOCABULARY_SIZE, 100)
        async with (
            # Shorter than the server tells callers of a dead engine to wait: they are told, and do not ask again.
            TeacherClient(server.address, timeout_seconds=4) as once,
            TeacherClient(server.address, timeout_seconds=START_SECONDS) as patient,
        ):
            before = (await once.score(TeacherIds(prompt), [response], top_k=8)).responses[0]
            engine = engine_process(server)
            engine.suspend()  # so that what follows is in flight when it dies
            in_flight = asyncio.create_task(once.score(TeacherIds(prompt), [response], top_k=8))
            waiting = asyncio.create_task(patient.score(TeacherIds(prompt), [response], top_k=8))
            await asyncio.sleep(1)
            engine.kill()
            with pytest.raises(TeacherUnavailableError, match="engine process ended"):
                await in_flight
            await wait_for_health(server.address, health_pb2.HealthCheckResponse.NOT_SERVING)
            after = (await waiting).responses[0]
            await wait_for_health(server.address, health_pb2.HealthCheckResponse.SERVING)
            engine = engine_process(server)
            engine.suspend()
            update = asyncio.create_task(once.update_weights("new"))
            await asyncio.sleep(1)
            engine.kill()
            with pytest.raises(TeacherUnavailableError, match="engine process ended"):
                await update
        np.testing.assert_array_equal(after.support_ids_NK, before.support_ids_NK)
        np.testing.assert_allclose(after.sampled_logprobs_N, before.sampled_logprobs_N, atol=1e-5)

    save_model(tmp_path / "weights" / "new", seed=1)
    with vllm_server(
        tmp_path, model, "--engine.weights-folder", str(tmp_path / "weights"), *MAY_UPDATE_WEIGHTS
    ) as server:
        asyncio.run(run(server))
        assert server.stop() == 0


def test_a_server_that_is_killed_takes_vllm_with_it(model: Path, tmp_path: Path) -> None:
    with vllm_server(tmp_path, model, path="stock") as server:
        processes = psutil.Process(server.process.pid).children(recursive=True)
        assert processes
        server.kill()
        _, alive = psutil.wait_procs(processes, timeout=60)
    assert not alive


def test_requests_given_up_leave_nothing_behind(model: Path) -> None:
    """500 of them, three times over, some cancelled and some past their deadline: in a process of its own, since vLLM
    inside of pytest warns when it ends."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.vllm.giving_up", str(model)],
        capture_output=True,
        text=True,
        timeout=START_SECONDS * 2,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    print(found)  # pytest -rP shows it
    assert found["num_requests"] == 500
    assert found["unfinished"] == found["waiting"] == found["tokens_in_flight"] == 0
    # vLLM's core empties its prefix cache only when no request holds a block of it.
    assert found["emptied_cache"]
    for outcomes in found["outcomes"]:
        assert min(outcomes.values()) > 10
    assert found["rss_bytes"][-1] - found["rss_bytes"][0] < 32 << 20


async def test_what_a_path_cannot_do_is_refused_by_name(model: Path, tmp_path: Path) -> None:
    with vllm_server(tmp_path, model, path="stock", arguments={"max_logprobs": 20}) as server:
        async with TeacherClient(server.address, timeout_seconds=60) as client:
            (teacher,) = (await client.info()).teachers
            assert teacher.max_model_len == MAX_MODEL_LEN - 1
            prompt, response = TeacherIds([5, 6]), [7, 8]
            with pytest.raises(InvalidRequestError, match=r"top_k: 21 is outside \[1, 20\]"):
                await client.score(prompt, [response], top_k=21)
            with pytest.raises(NotImplementedByServerError, match="temperature"):
                await client.score(prompt, [response], top_k=5, temperature=2.0)
            with pytest.raises(NotImplementedByServerError, match="candidates"):
                await client.score(prompt, [response], top_k=5, candidate_ids=[np.array([[1], [2]])])
            with pytest.raises(NotImplementedByServerError, match="batch_invariant"):
                await client.score(prompt, [response], top_k=5, batch_invariant=True)
            with pytest.raises(InvalidRequestError, match="max_model_len"):
                await client.score(TeacherIds([5] * MAX_MODEL_LEN), [response], top_k=5)
            scores = (await client.score(prompt, [response], top_k=20)).responses[0]
        assert scores.entropies_N is None
        assert scores.support_ids_NK.shape == (2, 20)


def config_of(folder: Path, **changes: object) -> Path:
    """A copy of the model's config, changed; without weights, for starts that must fail before they are read."""
    folder.mkdir()
    config = json.loads((folder.parent / "model" / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((folder.parent / "model" / name).read_bytes())
    return folder


FAILING_STARTS: list[tuple[bool, list[str], dict[str, int], str]] = [
    (True, [], {}, "vLLM does not support this architecture: set engine.kind=hf"),
    (False, ["--engine.max-model-len", "99999"], {}, "engine.max_model_len"),
    (False, [], {"kv_cache_memory_bytes": 1 << 10}, "too little memory for vLLM's KV cache"),
    (False, [], {"tensor_parallel_size": 3}, "tensor_parallel_size"),
    (False, [], {"no_such_argument": 1}, "engine.arguments.no_such_argument"),
]


@pytest.mark.parametrize(
    ("is_unknown", "more", "arguments", "message"),
    [
        pytest.param(*case, marks=[] if "kv_cache" in str(case) else pytest.mark.vllm_long, id=case[-1])
        for case in FAILING_STARTS
    ],
)
def test_a_start_that_must_fail_names_the_setting_to_change(
    is_unknown: bool, more: list[str], arguments: dict[str, int], message: str, tmp_path: Path
) -> None:
    folder = save_model(tmp_path / "model")
    if is_unknown:
        folder = config_of(tmp_path / "unknown", architectures=["NobodyKnowsForCausalLM"], model_type="llama")
    done = run_server_to_its_end(
        *("--listen.port", "0", "--engine.kind", "vllm", "--engine.model", str(folder), *more),
        *("--engine.arguments", engine_arguments(**arguments)),
        timeout_seconds=START_SECONDS,
    )
    last = done.stderr.strip().splitlines()[-1]
    print(last)
    assert done.returncode == 1
    assert last.startswith("preceptor-server: ")
    assert message in last


@pytest.mark.vllm_long
def test_the_fast_path_is_refused_where_it_cannot_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = save_model(tmp_path / "model")
    monkeypatch.setenv("VLLM_PLUGINS", "others")
    done = run_server_to_its_end(
        *("--listen.port", "0", "--engine.kind", "vllm", "--engine.model", str(model)),
        *("--engine.path", "fast", "--engine.arguments", engine_arguments()),
        timeout_seconds=START_SECONDS,
    )
    assert "VLLM_PLUGINS=others leaves out the plugin preceptor" in done.stderr.strip().splitlines()[-1]
    with vllm_server(tmp_path / "server", model, path="auto") as server:
        log = server.log.read_text()
        assert "vllm takes the stock path" in log
        assert "vLLM's processes would outlive this server, were it killed" in log
        assert server.stop() == 0
