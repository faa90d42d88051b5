"""Servers that answer over gRPC and HTTP, and what tests ask of both."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from tests.integration.servers import RunningServer, running_server

SECONDS = 60.0
Body = dict[str, Any]  # Any: whatever JSON holds


@dataclass(frozen=True, slots=True)
class BothWays:
    """A running server, and where its HTTP side is."""

    server: RunningServer
    url: str

    def client(self) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=SECONDS, trust_env=False)

    def async_client(self) -> httpx.AsyncClient:
        return httpx.AsyncClient(base_url=self.url, timeout=SECONDS, trust_env=False)


@contextmanager
def running_both(folder: Path, *arguments: str) -> Iterator[BothWays]:
    """For the length of the block; the HTTP side's port comes from the kernel."""
    address_file = folder / "http-address"
    options = ["--http.port", "0", "--http.address-file", str(address_file)]
    with running_server(folder, *arguments, *options) as server:
        while not address_file.exists():  # written right after the other one, which was waited for
            assert server.process.poll() is None, server.log.read_text()
        yield BothWays(server, f"http://{address_file.read_text()}")


def free_port() -> int:
    """One that nobody has at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
