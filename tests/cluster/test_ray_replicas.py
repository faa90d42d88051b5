"""Two servers on a real Ray cluster of one machine: what they answer, and what happens when one is killed."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from preceptor.wire import LogprobDtype, TokenArray
from preceptor_client import GroupScores, RetryPolicy, TeacherClient, TeacherIds
from transformers import AutoModelForCausalLM, PreTrainedModel

from tests.integration.test_replica_process import is_running

pytestmark = pytest.mark.ray

LAUNCHER = Path(__file__).parents[2] / "deploy" / "ray" / "replicas.py"
START_SECONDS = 180
NUM_GROUPS = 40
QUICK = RetryPolicy(initial_seconds=0.05, max_seconds=0.5)


@dataclass(frozen=True, slots=True)
class Cluster:
    """The launcher's process, and what it says."""

    process: subprocess.Popen[bytes]
    addresses: list[str]
    log: Path

    def answering(self) -> list[tuple[str, int]]:
        """Address and process of every server that was ever seen to answer, in order."""
        lines = re.findall(r"replica answers: index=\d+ address=(\S+) pid=(\d+)", self.log.read_text())
        return [(address, int(pid)) for address, pid in lines]

    def pid_at(self, address: str) -> int:
        return [pid for at, pid in self.answering() if at == address][-1]

    def wait_for_another(self, address: str, *, than: int) -> int:
        """The process that took the place of `than`."""
        deadline = time.monotonic() + START_SECONDS
        while self.pid_at(address) == than:
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.1)
        return self.pid_at(address)


@pytest.fixture(scope="module")
def cluster(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Two replicas; the launcher starts Ray, and ends it."""
    folder = tmp_path_factory.mktemp("ray")
    addresses_file, log = folder / "addresses", folder / "launcher.log"
    command = [sys.executable, str(LAUNCHER), "--replicas", "2", "--cpus-per-replica", "0.5"]
    command += ["--addresses-file", str(addresses_file), "--"]
    command += ["--engine.model", str(tiny_folder), "--log-level", "DEBUG"]
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=output, env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
        )
    try:
        deadline = time.monotonic() + START_SECONDS
        while not addresses_file.exists():
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.1)
        yield Cluster(process, addresses_file.read_text().split(","), log)
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            process.wait(120)


@dataclass(frozen=True, slots=True)
class Group:
    prompt: TokenArray
    response: TokenArray


def random_groups(*, seed: int) -> list[Group]:
    rng = np.random.default_rng(seed)
    return [
        Group(rng.integers(0, 259, int(rng.integers(1, 60))), rng.integers(0, 259, int(rng.integers(1, 50))))
        for _ in range(NUM_GROUPS)
    ]


async def score(client: TeacherClient, group: Group) -> GroupScores:
    return await client.score(TeacherIds(group.prompt), [group.response], top_k=32, logprob_dtype=LogprobDtype.F32)


@torch.inference_mode()
def assert_equal_to_oracle(model: PreTrainedModel, group: Group, answer: GroupScores) -> None:
    """One plain forward in fp32 and a dense log-softmax; 1e-4 nats is what two such computations may differ by."""
    ids = torch.from_numpy(np.concatenate([group.prompt, group.response]))[None]
    oracle_TV = model(input_ids=ids).logits[0, len(group.prompt) - 1 : -1].log_softmax(dim=-1).numpy()
    scores = answer.responses[0]
    expected = np.take_along_axis(oracle_TV, scores.support_ids_NK, axis=1)
    assert np.abs(scores.support_logprobs_NK - expected).max() <= 1e-4
    assert np.abs(expected - -np.sort(-oracle_TV, axis=1)[:, :32]).max() <= 1e-4
    sampled = oracle_TV[np.arange(len(group.response)), group.response]
    assert np.abs(scores.sampled_logprobs_N - sampled).max() <= 1e-4


@pytest.fixture(scope="module")
def oracle(tiny_folder: Path) -> PreTrainedModel:
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(tiny_folder, dtype=torch.float32).eval()
    return model


def score_all(addresses: list[str], groups: list[Group]) -> list[GroupScores]:
    async def ask() -> list[GroupScores]:
        async with TeacherClient(",".join(addresses), timeout_seconds=120, retry=QUICK) as client:
            return await asyncio.gather(*(score(client, group) for group in groups))

    return asyncio.run(ask())


def num_scored(cluster: Cluster, address: str) -> int:
    """Groups that the server at this address has scored, by its own log."""
    logs = dict(re.findall(r"address=(\S+) pid=\d+ starts=\d+ log=(\S+)", cluster.log.read_text()))
    return sum(int(groups) for groups in re.findall(r"batch groups=(\d+)", Path(logs[address]).read_text()))


def test_each_replica_and_both_together_equal_the_oracle(cluster: Cluster, oracle: PreTrainedModel) -> None:
    groups = random_groups(seed=1)
    for addresses in ([cluster.addresses[0]], [cluster.addresses[1]], cluster.addresses):
        for group, answer in zip(groups, score_all(addresses, groups), strict=True):
            assert_equal_to_oracle(oracle, group, answer)


def test_both_replicas_answer_some(cluster: Cluster) -> None:
    before = [num_scored(cluster, address) for address in cluster.addresses]
    score_all(cluster.addresses, random_groups(seed=2))
    scored = [num_scored(cluster, address) - had for address, had in zip(cluster.addresses, before, strict=True)]
    assert sum(scored) == NUM_GROUPS
    # Binomial, 40 at 1/2: fewer than 6 on one side has a chance of 1e-6.
    assert min(scored) >= 6


def test_a_killed_server_is_stood_in_for_and_comes_back_at_its_address(
    cluster: Cluster, oracle: PreTrainedModel
) -> None:
    groups = random_groups(seed=3)
    victim, pid = cluster.addresses[0], cluster.pid_at(cluster.addresses[0])

    async def ask() -> list[GroupScores]:
        codes: list[str] = []
        client = TeacherClient(
            ",".join(cluster.addresses),
            timeout_seconds=120,
            retry=QUICK,
            on_retry=lambda event: codes.append(f"{event.code} {event.address}"),
        )
        async with client:
            answers = await asyncio.gather(*(score(client, group) for group in groups[:5]))
            os.kill(pid, signal.SIGKILL)
            answers += await asyncio.gather(*(score(client, group) for group in groups[5:]))
            assert set(codes) == {f"UNAVAILABLE {victim}"}
            await asyncio.to_thread(cluster.wait_for_another, victim, than=pid)
            scored = num_scored(cluster, victim)
            async with asyncio.timeout(60):
                while num_scored(cluster, victim) == scored:
                    await asyncio.gather(*(score(client, group) for group in groups))
        return answers

    for group, answer in zip(groups, asyncio.run(ask()), strict=True):
        assert_equal_to_oracle(oracle, group, answer)


def test_a_killed_actor_takes_its_server_along_and_both_come_back_at_the_address(
    cluster: Cluster, oracle: PreTrainedModel
) -> None:
    address = cluster.addresses[1]
    pid = cluster.pid_at(address)
    actor = int(re.findall(r"PPid:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())[0])
    os.kill(actor, signal.SIGKILL)
    cluster.wait_for_another(address, than=pid)
    assert not is_running(pid)
    groups = random_groups(seed=4)
    for group, answer in zip(groups, score_all([address], groups), strict=True):
        assert_equal_to_oracle(oracle, group, answer)


def test_sigterm_drains_and_leaves_no_process(cluster: Cluster) -> None:
    pids = [cluster.pid_at(address) for address in cluster.addresses]
    cluster.process.send_signal(signal.SIGTERM)
    assert cluster.process.wait(120) == 0
    assert cluster.log.read_text().count("exit_status=0") == 2
    assert not [pid for pid in pids if is_running(pid)]
