"""Teacher servers as children on loopback, from their command to their first answer. Knows nothing of what is asked."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.teacher.process_tree import ProcessTree

START_SECONDS = 900
"""vLLM compiles: 45 s on two quiet cores, many times that on busy ones."""
POLL_SECONDS = 0.2
LOG_TAIL_CHARACTERS = 3000


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerSettings:
    """What all servers have in common."""

    model: Path
    dtype: str
    max_model_len: int
    folder: Path
    """For logs and address files."""
    kvcache_gib: int
    threads_bind: str
    """vLLM's VLLM_CPU_OMP_THREADS_BIND, for ours and for TRL's alike."""
    is_eager: bool
    """vLLM's enforce_eager, likewise."""
    gpu_memory_share: float | None = None
    """vLLM's gpu_memory_utilization, likewise: servers that share a GPU cannot each have most of it."""

    @property
    def environment(self) -> Mapping[str, str]:
        """What is set besides the bench's own environment."""
        return {
            "HF_HUB_OFFLINE": "1",
            "OMP_WAIT_POLICY": "PASSIVE",  # a server and its client share the cores
            "VLLM_CPU_KVCACHE_SPACE": str(self.kvcache_gib),
            "VLLM_CPU_OMP_THREADS_BIND": self.threads_bind,
            "VLLM_NO_USAGE_STATS": "1",
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class RunningServer:
    """Answers at `address`, "host:port"."""

    address: str
    command: tuple[str, ...]
    tree: ProcessTree


def preceptor_server_command(settings: ServerSettings, *, engine: str, path: str | None = None) -> list[str]:
    """Of our server; `path` is the vllm engine's, fast or stock."""
    command = [
        *(sys.executable, "-m", "preceptor_server.cli", "--engine.kind", engine),
        *("--engine.model", str(settings.model), "--engine.dtype", settings.dtype, "--engine.head-dtype", "model"),
        *("--listen.port", "0", "--log-level", "WARNING"),
    ]
    if path is not None:
        command += ["--engine.path", path, "--engine.max-model-len", str(settings.max_model_len)]
        arguments: dict[str, bool | float] = {"enforce_eager": settings.is_eager}
        if settings.gpu_memory_share is not None:
            arguments["gpu_memory_utilization"] = settings.gpu_memory_share
        command += ["--engine.arguments", json.dumps(arguments)]
    return command


def vllm_serve_command(settings: ServerSettings, *, port: int) -> list[str]:
    """Of vLLM's own server, as TRL's documentation starts it for its client."""
    share = settings.gpu_memory_share
    return [
        *(str(Path(sys.executable).with_name("vllm")), "serve", str(settings.model), "--dtype", settings.dtype),
        *("--max-model-len", str(settings.max_model_len), "--max-logprobs", "-1"),
        *("--logprobs-mode", "processed_logprobs", "--host", "127.0.0.1", "--port", str(port)),
        *(["--enforce-eager"] if settings.is_eager else []),
        *(["--gpu-memory-utilization", str(share)] if share is not None else []),
    ]


@contextmanager
def preceptor_server(
    settings: ServerSettings, *, name: str, engine: str, path: str | None = None
) -> Iterator[RunningServer]:
    """Our server for the length of the block."""
    address_file = settings.folder / f"{name}.address"
    address_file.unlink(missing_ok=True)
    command = preceptor_server_command(settings, engine=engine, path=path)
    with _child([*command, "--listen.address-file", str(address_file)], settings, name=name) as child:
        child.wait_until(address_file.exists)
        yield RunningServer(address=address_file.read_text().strip(), command=tuple(command), tree=child.tree)


@contextmanager
def vllm_serve(settings: ServerSettings, *, name: str) -> Iterator[RunningServer]:
    """vLLM's own server for the length of the block."""
    port = _free_port()
    command = vllm_serve_command(settings, port=port)
    with _child(command, settings, name=name) as child:
        child.wait_until(lambda: _is_healthy(f"http://127.0.0.1:{port}/health"))
        yield RunningServer(address=f"127.0.0.1:{port}", command=tuple(command), tree=child.tree)


class _Child:
    """A process that writes into a log."""

    def __init__(self, command: list[str], settings: ServerSettings, *, name: str) -> None:
        self._name, self._log = name, settings.folder / f"{name}.log"
        try:
            with self._log.open("wb") as output:
                self.process = subprocess.Popen(
                    command, stdout=output, stderr=output, env={**os.environ, **settings.environment}
                )
        except FileNotFoundError as error:
            raise SystemExit(f"{name}: {error}: `make bench-teacher` runs the bench where vLLM is installed") from error
        self.tree = ProcessTree(self.process.pid)

    def wait_until(self, is_ready: Callable[[], bool]) -> None:
        """Ends the bench with the end of the log where that never comes."""
        deadline = time.monotonic() + START_SECONDS
        while not is_ready():
            if self.process.poll() is not None:
                raise SystemExit(f"{self._name} ended with {self.process.returncode}; its log ends:\n{self._tail()}")
            if time.monotonic() > deadline:
                raise SystemExit(f"{self._name} did not answer in {START_SECONDS} s; its log ends:\n{self._tail()}")
            time.sleep(POLL_SECONDS)

    def _tail(self) -> str:
        return f"{self._log.read_text(errors='replace')[-LOG_TAIL_CHARACTERS:]}\n({self._log})"


@contextmanager
def _child(command: list[str], settings: ServerSettings, *, name: str) -> Iterator[_Child]:
    child = _Child(command, settings, name=name)
    try:
        yield child
    finally:
        child.tree.end()
        child.process.wait()


def _free_port() -> int:
    """`vllm serve` does not tell a port of the kernel's choice, so it is chosen, and let go, here."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _is_healthy(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, TimeoutError, ConnectionError):
        return False
