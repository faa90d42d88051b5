"""The child process of a replica, as deploy/ray runs it, without Ray: started, restarted where it was, drained."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from preceptor_client import BlockingTeacherClient

from deploy.ray.server_process import ServerProcess, State, backoff_seconds
from tests.engines.fake import fake_arguments
from tests.integration.servers import python_path

REPOSITORY = Path(__file__).parents[2]
FAKE = fake_arguments()
SECONDS = 90


@pytest.fixture(autouse=True)
def _engines_of_the_tests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", python_path())


@contextmanager
def tended(*arguments: str) -> Iterator[ServerProcess]:
    server = ServerProcess(arguments, host="127.0.0.1", is_public=False)
    try:
        yield server
    finally:
        server.drain()


def tend_until_answering(server: ServerProcess, *, other_than: int = 0) -> State:
    deadline = time.monotonic() + SECONDS
    while not (state := server.tend()).address or state.pid == other_than:
        assert time.monotonic() < deadline, state
        time.sleep(0.05)
    return state


def test_a_killed_server_is_started_again_at_its_address_and_drained_in_the_end() -> None:
    with tended(*FAKE) as server:
        first = tend_until_answering(server)
        os.kill(first.pid, signal.SIGKILL)
        second = tend_until_answering(server, other_than=first.pid)
        assert (second.address, second.num_starts, second.exit_status) == (first.address, 2, -signal.SIGKILL)
        with BlockingTeacherClient(second.address) as client:
            assert client.info().teachers[0].engine == "fake"
        drained = server.drain()
        assert (drained.address, drained.pid, drained.exit_status) == ("", 0, 0)
        assert server.tend().pid == 0


def test_a_server_that_cannot_start_says_why_and_is_not_tried_without_pause() -> None:
    with tended("--engine.kind", "no such engine") as server:
        deadline = time.monotonic() + SECONDS
        while (state := server.tend()).pid or state.exit_status is None:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert state.exit_status == 2
        assert "engine.kind" in state.log_tail
        assert server.tend().num_starts == 1


def test_waits_grow_up_to_a_bound() -> None:
    assert [backoff_seconds(number) for number in (0, 1, 2, 3, 6, 1000)] == [0, 1, 2, 4, 30, 30]


@pytest.mark.skipif(sys.platform != "linux", reason="prctl is Linux's")
def test_a_killed_parent_leaves_no_server_behind() -> None:
    program = (
        f"import sys, time; sys.path.insert(0, {str(REPOSITORY)!r})\n"
        "from deploy.ray.server_process import ServerProcess\n"
        f"server = ServerProcess({FAKE!r}, host='127.0.0.1', is_public=False)\n"
        "while not server.tend().address: time.sleep(0.05)\n"
        "print(server.state().pid, flush=True); time.sleep(600)"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        parent.kill()
    deadline = time.monotonic() + SECONDS
    while is_running(pid):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def is_running(pid: int) -> bool:
    """A process that has ended stays as a zombie where nobody waits for orphans."""
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False
