"""What is asked of this machine goes through no proxy that the environment names: it would see the key."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from preceptor_client import RetryPolicy, TeacherClient, TeacherIds
from preceptor_client.access import find_access
from preceptor_client.errors import TeacherUnavailableError
from preceptor_client.http.connection import HttpTeacher

from tests.unit.client.scripted_teacher import ScriptedTeacher, serving

KEY = "prk_7f3a_c2VjcmV0"
QUICK = RetryPolicy(initial_seconds=0.01, max_seconds=0.05)


@asynccontextmanager
async def proxy(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[list[bytes]]:
    """Reads what it is sent, and hangs up."""
    seen: list[bytes] = []

    async def read(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.append(await reader.read(4096))
        writer.close()

    server = await asyncio.start_server(read, "127.0.0.1", 0)
    address = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    for name in ("http_proxy", "https_proxy", "grpc_proxy", "all_proxy"):
        monkeypatch.setenv(name, address)
        monkeypatch.delenv(name.upper(), raising=False)
    for name in ("no_proxy", "NO_PROXY", "no_grpc_proxy"):
        monkeypatch.delenv(name, raising=False)
    async with server:
        yield seen


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
async def test_a_teacher_of_this_machine_is_asked_over_grpc_without_a_proxy(
    host: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher = ScriptedTeacher()
    async with proxy(monkeypatch) as seen, serving(teacher) as address:
        port = address.rpartition(":")[2]
        async with TeacherClient(f"{host}:{port}", api_key=KEY, retry=QUICK, timeout_seconds=20) as client:
            await client.score(TeacherIds([1]), [[1]], top_k=2)
    assert seen == []
    assert teacher.metadata[0]["authorization"] == f"Bearer {KEY}"


async def test_a_teacher_of_this_machine_is_asked_over_http_without_a_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    async with proxy(monkeypatch) as seen:
        access = find_access(api_key=KEY)
        async with HttpTeacher("http://127.0.0.1:1", timeout_seconds=0.5, retry=QUICK, access=access) as teacher:
            with pytest.raises(TeacherUnavailableError):
                await teacher.info()
    assert seen == []


async def test_a_teacher_elsewhere_is_asked_through_the_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    async with (
        proxy(monkeypatch) as seen,
        TeacherClient("teacher.invalid:50051", retry=QUICK, timeout_seconds=1) as client,
    ):
        with pytest.raises(TeacherUnavailableError):
            await client.info()
    assert seen[0].startswith(b"CONNECT teacher.invalid:50051 ")
