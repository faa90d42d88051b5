"""Servers that answer over gRPC and over HTTP."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.integration.servers import RunningServer, running_server


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
        yield TwoSided(server=server, url=f"http://{address_file.read_text()}")
