"""The server as a process: how it starts, what it refuses to start with, how it ends."""

from __future__ import annotations

import asyncio
import signal
import socket
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from preceptor_client import RetryPolicy, TeacherClient, TeacherIds
from preceptor_client.errors import TeacherUnavailableError

from tests.engines.fake import fake_arguments
from tests.integration.servers import RunningServer, run_server_to_its_end, running_server

SERVICE = "preceptor.v1.TeacherService"


async def test_get_info_tells_the_truth(hf_server: RunningServer) -> None:
    async with TeacherClient(hf_server.address) as client:
        info = await client.info(include_tokenizer=True)
    [teacher] = info.teachers
    assert (teacher.name, teacher.engine, teacher.dtype, teacher.device) == ("teacher", "hf", "float32", "cpu")
    assert (teacher.vocabulary_size, teacher.max_model_len) == (259, 512)
    assert [(token.id, token.text) for token in teacher.special_tokens] == [
        (0, "<|endoftext|>"),
        (1, "<|im_start|>"),
        (2, "<|im_end|>"),
    ]
    assert teacher.end_token_ids == (2,)
    assert teacher.has_chat_template
    assert teacher.capabilities.temperature
    assert teacher.capabilities.candidates
    assert teacher.capabilities.other_tokenizers
    assert info.limits.max_top_k == 259
    assert '"<|im_end|>"' in teacher.tokenizer_json


def test_health_and_reflection_are_served(hf_server: RunningServer) -> None:
    with grpc.insecure_channel(hf_server.address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        for name in ("", SERVICE):
            answer = stub.Check(health_pb2.HealthCheckRequest(service=name), timeout=10)
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
        assert SERVICE in ProtoReflectionDescriptorDatabase(channel).get_services()


async def test_sigterm_finishes_what_is_in_flight_and_refuses_what_is_new(tmp_path: Path) -> None:
    # A second for the group below. By its tokens: the start-up self-test waits for each of its own too.
    slow = fake_arguments(seconds_per_token=0.01)
    with running_server(tmp_path, *slow) as server:
        async with TeacherClient(server.address) as client:
            in_flight = asyncio.create_task(client.score(TeacherIds([1] * 97), [[3, 4, 5]], top_k=2))
            await asyncio.sleep(0.3)
            server.process.send_signal(signal.SIGTERM)
            await asyncio.sleep(0.2)
            late = TeacherClient(server.address, timeout_seconds=0.3)
            with pytest.raises(TeacherUnavailableError):
                await late.score(TeacherIds([1, 2]), [[3]], top_k=2)
            await late.close()
            answer = await in_flight
        assert answer.responses[0].positions_N.tolist() == [0, 1, 2]
        assert await asyncio.to_thread(server.process.wait, 20) == 0
    assert "level=ERROR" not in server.log.read_text()


async def test_overload_is_told_with_a_delay_and_memory_stays_bounded(tmp_path: Path) -> None:
    arguments = fake_arguments(seconds_per_token=0.02)
    arguments += ["--scheduler.max-queue-tokens", "20", "--limits.max-group-tokens", "20"]
    arguments += ["--scheduler.max-batch-tokens", "5"]
    codes: list[str] = []
    with running_server(tmp_path, *arguments) as server:
        client = TeacherClient(
            server.address, retry=RetryPolicy(initial_seconds=0.05), on_retry=lambda event: codes.append(event.code)
        )
        async with client:
            answers = await asyncio.gather(
                *(client.score(TeacherIds([1, 2, 3]), [[4, 5]], top_k=2) for _ in range(12))
            )  # fmt: skip
    assert len(answers) == 12
    assert set(codes) == {"RESOURCE_EXHAUSTED"}


async def test_a_cancelled_group_never_costs_a_forward(tmp_path: Path) -> None:
    arguments = [*fake_arguments(seconds_per_token=0.01), "--log-level", "DEBUG"]
    with running_server(tmp_path, *arguments, "--scheduler.max-batch-tokens", "5") as server:
        async with TeacherClient(server.address) as client:
            first = asyncio.create_task(client.score(TeacherIds([1] * 48), [[4, 5]], top_k=2))
            await asyncio.sleep(0.1)
            waiting = asyncio.create_task(client.score(TeacherIds([9] * 100), [[4, 5]], top_k=2))
            await asyncio.sleep(0.1)
            waiting.cancel()
            await first
            await client.score(TeacherIds([1]), [[2]], top_k=2)
        server.stop()
    assert "tokens=102" not in server.log.read_text()


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["--engine.model", "./no-such-folder"], 1, "engine.model: no folder './no-such-folder'"),
        ([], 2, "set engine.model to a hub id or a folder"),
        (["--engine.kind", "hf"], 2, "set engine.model to a hub id or a folder"),
        ([*fake_arguments(), "--scheduler.max-batch-tokens", "many"], 2, "scheduler.max_batch_tokens"),
        ([*fake_arguments(), "--listen.host", "0.0.0.0"], 2, "allow_insecure"),
        (["@", "missing.toml"], 2, "missing.toml does not exist"),
        ([*fake_arguments(), "--engine.tokenizer", "./nowhere"], 1, "engine.tokenizer: no folder './nowhere'"),
    ],
)
def test_what_cannot_work_is_told_in_words_and_without_a_traceback(
    arguments: list[str], status: int, words: str
) -> None:
    result = run_server_to_its_end(*arguments, "--listen.port", "0")
    assert result.returncode == status
    assert words in result.stderr
    assert "Traceback" not in result.stderr


def test_an_unknown_key_in_a_toml_is_named(tmp_path: Path) -> None:
    path = tmp_path / "teacher.toml"
    path.write_text('[engine]\nmodel = "m"\nmodle = "x"\n')
    result = run_server_to_its_end("@", str(path))
    assert (result.returncode, "engine.modle" in result.stderr) == (2, True)


def test_a_port_in_use_is_told_before_the_model_is_loaded(tiny_folder: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        result = run_server_to_its_end("--engine.model", str(tiny_folder), "--listen.port", str(port))
    assert result.returncode == 1
    assert f"cannot bind to 127.0.0.1:{port}" in result.stderr
    assert "model loaded" not in result.stderr


def test_two_servers_never_share_a_port_in_silence(fake_server: RunningServer) -> None:
    port = fake_server.address.split(":")[1]
    result = run_server_to_its_end(*fake_arguments(), "--listen.port", port)
    assert (result.returncode, "is the port in use?" in result.stderr) == (1, True)
