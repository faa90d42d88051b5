"""One browser and one server for all tests of the page; a tab for each."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest
from playwright.sync_api import Browser, sync_playwright

from tests.browser.browsing import Visit, free_port, launched, visiting
from tests.integration.servers import RunningServer, running_server
from tests.tiny import save_tiny, tiny_llama


class Teachers(NamedTuple):
    """The addresses of two servers."""

    first: str
    """HTTP; it records, and may be laid beside the other."""
    other: str
    """HTTP; other weights."""
    grpc: str
    """The first one's, for trainers."""


@contextmanager
def http_server(folder: Path, *arguments: str) -> Iterator[tuple[RunningServer, str]]:
    """A server with HTTP, and its HTTP address."""
    address = folder / "http-address"
    more = [] if "--http.port" in arguments else ["--http.port", "0"]
    with running_server(folder, *arguments, *more, "--http.address-file", str(address)) as server:
        yield server, address.read_text().strip()


@pytest.fixture(scope="package")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama with room for long texts."""
    return save_tiny(tmp_path_factory.mktemp("model"), tiny_llama(max_length=8192))


@pytest.fixture(scope="package")
def teachers(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Teachers]:
    """Two servers with tiny Llamas."""
    folder = tmp_path_factory.mktemp("servers")
    other_folder = save_tiny(folder / "other-model", tiny_llama(seed=1, max_length=8192))
    own, other = free_port(), free_port()
    first_arguments = [
        *("--engine.model", str(model_folder), "--http.port", str(own), "--http.record", "50"),
        *("--http.compare-with", f'["http://127.0.0.1:{other}"]'),
    ]
    other_arguments = [
        *("--engine.model", str(other_folder), "--http.port", str(other)),
        *("--http.allow-origins", f'["http://127.0.0.1:{own}"]'),
    ]
    with (
        http_server(folder / "first", *first_arguments) as (server, first_address),
        http_server(folder / "other", *other_arguments) as (_, other_address),
    ):
        yield Teachers(first_address, other_address, server.address)


@pytest.fixture(scope="package")
def address(teachers: Teachers) -> str:
    return teachers.first


# Not of the session: while the blocking Playwright runs, this thread has an event loop, which other tests cannot bear.
@pytest.fixture(scope="package")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright, launched(playwright) as browser:
        yield browser


@pytest.fixture
def visit(browser: Browser, address: str) -> Iterator[Visit]:
    """A tab with the page in it."""
    with visiting(browser, address) as visit:
        visit.open()
        yield visit
