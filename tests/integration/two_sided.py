"""Servers that answer over gRPC and over HTTP."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.integration.servers import RunningServer, running_server

HTTP_SECONDS = 10


@dataclass(frozen=True, kw_only=True)
class TwoSided:
    """A server, and the URL of its HTTP side."""

    server: RunningServer
    url: str


@contextmanager
def two_sided(folder: Path, *arguments: str, http_port: int = 0) -> Iterator[TwoSided]:
    """Runs a server for the length of the block, both sides on ports of the kernel's unless one is named."""
    address_file = folder / "http-address"
    http = ["--http.port", str(http_port), "--http.address-file", str(address_file)]
    with running_server(folder, *arguments, *http) as server:
        # It is written a moment after that of gRPC.
        deadline = time.monotonic() + HTTP_SECONDS
        while not address_file.exists():
            assert time.monotonic() < deadline, server.log.read_text()
            time.sleep(0.01)
        yield TwoSided(server=server, url=f"http://{address_file.read_text()}")
