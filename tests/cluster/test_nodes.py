"""A Ray cluster of two nodes, both on this machine: what a launcher that joins it asks for, and a node that is lost."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from preceptor_client import BlockingTeacherClient, TeacherIds

from tests.cluster.test_ray_replicas import LAUNCHER, START_SECONDS
from tests.engines.fake import fake_arguments
from tests.integration.servers import python_path

pytestmark = pytest.mark.ray

NODE = {"num_cpus": 1, "object_store_memory": 100 << 20}
FAKE = ["--", *fake_arguments()]


@pytest.fixture
def nodes() -> Iterator[Any]:  # Any: Ray's types are not there where mypy runs
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ["PYTHONPATH"] = python_path()  # the nodes' processes inherit it, and so does a server there
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={**NODE, "include_dashboard": False})
    try:
        cluster.add_node(**NODE)
        cluster.wait_for_nodes()
        yield cluster
    finally:
        cluster.shutdown()


def launcher(nodes: Any, *options: str) -> list[str]:  # Any: as above
    return [sys.executable, str(LAUNCHER), "--address", nodes.address, "--replicas", "2", *options, *FAKE]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ([], "pass --public if the network between the nodes is trusted"),
        (["--public", "--gpus-per-replica", "1", "--placement-seconds", "3"], "do not fit into what the cluster has"),
    ],
)
def test_what_cannot_work_is_told_in_words(nodes: Any, options: list[str], says: str) -> None:  # Any: as above
    result = subprocess.run(launcher(nodes, *options), capture_output=True, text=True, timeout=START_SECONDS)
    assert result.returncode == 1
    assert says in result.stderr
    assert "Traceback" not in result.stderr


def test_replicas_are_spread_and_one_whose_node_is_lost_comes_up_on_another(
    nodes: Any,  # Any: as above
    tmp_path: Path,
) -> None:
    log, addresses_file = tmp_path / "launcher.log", tmp_path / "addresses"
    with log.open("wb") as output:
        process = subprocess.Popen(
            launcher(nodes, "--public", "--addresses-file", str(addresses_file)), stdout=output, stderr=output
        )
    try:
        wait_for_answers(log, 2)
        [lost] = nodes.worker_nodes
        nodes.add_node(**NODE)
        nodes.remove_node(lost, allow_graceful=False)
        # One replica was on the lost node, for they are spread and each node has room for one.
        wait_for_answers(log, 3)
        for address in addresses_file.read_text().split(","):
            assert not address.startswith("127.")
            with BlockingTeacherClient(address) as client:
                assert client.score(TeacherIds([1]), [[2]], top_k=2).responses
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(120) == 0


def wait_for_answers(log: Path, number: int) -> None:
    deadline = time.monotonic() + START_SECONDS
    while len(re.findall("replica answers", log.read_text())) < number:
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.1)
