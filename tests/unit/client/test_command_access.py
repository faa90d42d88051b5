"""How the commands show who they are: over gRPC and over HTTP, by files and by the environment."""

from __future__ import annotations

import asyncio
import json
import logging
from pathlib import Path

import httpx
import pytest
from preceptor.settings import load_settings
from preceptor_client.access import Access, find_access
from preceptor_client.commands import doctor, tail, weights
from preceptor_client.commands.http_access import open_http
from preceptor_client.commands.tail_settings import TailSettings
from preceptor_client.commands.weights import WeightsSettings
from preceptor_client.errors import AccessDeniedError
from preceptor_client.http.connection import HttpTeacher
from preceptor_client.retry import RetryPolicy

from tests.unit.client.http.scripted_http import STATS
from tests.unit.client.scripted_teacher import ScriptedTeacher
from tests.unit.client.secure_serving import Authority, serving_by_tls

KEY = "prk_7f3a_c2VjcmV0"
OTHER = "prk_7f3b_b3RoZXI"


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    path = tmp_path / "key"
    path.write_text(KEY + "\n")
    return path


async def test_a_command_asks_by_tls_with_key_and_certificate(
    authority: Authority, key_file: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    teacher = ScriptedTeacher()
    certificate, key = authority.client_pair()
    async with serving_by_tls(teacher, authority, client_ca=authority.ca) as address:
        arguments = ["--address", address, "--api-key-file", str(key_file), "--ca", str(authority.ca)]
        arguments += ["--cert", str(certificate), "--cert-key", str(key)]
        with caplog.at_level(logging.DEBUG):
            assert await asyncio.to_thread(weights.run, [*arguments, "--path", "new"]) == 0
            assert await asyncio.to_thread(doctor.run, [*arguments, "--json"]) == 0
    assert teacher.metadata[0]["authorization"] == f"Bearer {KEY}"
    said = capsys.readouterr()
    assert "of new" in said.out
    assert KEY not in said.out + said.err + caplog.text


def test_a_key_to_another_machine_is_refused_in_one_line(key_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    access = ["--api-key-file", str(key_file)]
    assert weights.run(["--address", "teacher.example:1", "--path", "x", *access]) == 1
    assert doctor.run(["--address", "teacher.example:1", *access, "--json"]) == 1
    assert tail.run(["http://teacher.example:1", *access]) == 1
    output = capsys.readouterr()
    said = output.err.splitlines()
    assert [line.split(": ")[0] for line in said] == ["preceptor weights", "preceptor tail"]
    assert all("in plain text" in line and KEY not in line for line in [*said, output.out])
    assert [check["name"] for check in json.loads(output.out)["checks"]] == ["address"]


def test_a_certificate_without_its_key_is_refused(
    authority: Authority, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    certificate, key = authority.client_pair()
    arguments = ["--address", "127.0.0.1:1", "--path", "x", "--cert", str(certificate)]
    assert weights.run(arguments) == 1
    assert "--cert and --cert-key go together" in capsys.readouterr().err
    # A variable counts as the option does.
    monkeypatch.setenv("PRECEPTOR_CERT_KEY", str(key))
    settings = load_settings(WeightsSettings, arguments, program="test")
    assert settings.access().get("cert") == (certificate, key)


async def test_http_sends_the_key_of_the_moment_with_every_attempt(tmp_path: Path, key_file: Path) -> None:
    sent: list[str] = []

    def answer(request: httpx.Request) -> httpx.Response:
        sent.append(request.headers["authorization"])
        key_file.write_text(OTHER)
        return httpx.Response(503) if len(sent) == 1 else httpx.Response(200, json=STATS)

    access = find_access(api_key_file=key_file, environment={})
    retry = RetryPolicy(initial_seconds=0.001, max_seconds=0.001)
    transport = httpx.MockTransport(answer)
    async with HttpTeacher(
        "http://127.0.0.1:1", timeout_seconds=5, retry=retry, transport=transport, access=access
    ) as teacher:
        await teacher.stats()
    assert sent == [f"Bearer {KEY}", f"Bearer {OTHER}"]


async def test_http_without_a_key_sends_no_header() -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        assert "authorization" not in request.headers
        return httpx.Response(200, json=STATS)

    async with HttpTeacher("http://127.0.0.1:1", timeout_seconds=5, transport=httpx.MockTransport(answer)) as teacher:
        await teacher.stats()


@pytest.mark.parametrize("status", [401, 403])
async def test_http_that_is_denied_is_asked_once(status: int) -> None:
    asked: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request)
        return httpx.Response(status, json={"detail": "not you", "reason": "EXPIRED_KEY"})

    async with HttpTeacher("http://127.0.0.1:1", timeout_seconds=5, transport=httpx.MockTransport(answer)) as teacher:
        with pytest.raises(AccessDeniedError, match="not you") as caught:
            await teacher.stats()
    assert caught.value.reason == "EXPIRED_KEY"
    assert len(asked) == 1


def test_http_with_a_key_needs_tls_or_this_machine(key_file: Path) -> None:
    access = find_access(api_key_file=key_file, environment={})
    for url in ("http://127.0.0.1:1", "http://[::1]:1", "http://localhost:1", "https://teacher.example"):
        HttpTeacher(url, timeout_seconds=1, access=access)
    with pytest.raises(ValueError, match=r"would go to http://teacher\.example in plain text"):
        HttpTeacher("http://teacher.example", timeout_seconds=1, access=access)
    HttpTeacher(
        "http://teacher.example", timeout_seconds=1, access=Access(credential=access.credential, insecure_key=True)
    )


async def test_https_believes_the_given_authority_alone(authority: Authority, tmp_path: Path) -> None:
    context = authority.server_context()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        body = httpx.Response(200, json=STATS).content
        writer.write(b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: %d\r\n\r\n" % len(body) + body)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
    url = f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    settings = load_settings(TailSettings, [url, "--ca", str(authority.ca)], program="test")
    async with open_http(url, access=settings.access(), timeout_seconds=10) as teacher:
        assert (await teacher.stats()).queue_groups == 3
    other = Authority(tmp_path, name="other")
    async with open_http(url, access={"ca": other.ca}, timeout_seconds=0.5) as teacher:
        with pytest.raises(Exception, match="CERTIFICATE_VERIFY_FAILED"):
            await teacher.stats()
    server.close()
    await server.wait_closed()
