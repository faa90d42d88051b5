"""TLS of the client against real servers: whom it believes, and how it is known."""

from __future__ import annotations

from pathlib import Path

import pytest
from preceptor_client import RetryPolicy, TeacherClient, TeacherIds
from preceptor_client.access import find_access
from preceptor_client.errors import TeacherUnavailableError

from tests.unit.client.scripted_teacher import ScriptedTeacher, serving
from tests.unit.client.secure_serving import Authority, serving_by_tls

KEY = "prk_7f3a_c2VjcmV0"
QUICK = RetryPolicy(initial_seconds=0.01, max_seconds=0.05)


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


async def score(client: TeacherClient, *, seconds: float = 10) -> None:
    await client.score(TeacherIds([1]), [[1]], top_k=2, timeout_seconds=seconds)


async def test_a_server_of_the_given_authority_gets_the_key(authority: Authority) -> None:
    teacher = ScriptedTeacher()
    async with (
        serving_by_tls(teacher, authority) as address,
        TeacherClient(address, ca=authority.ca, api_key=KEY) as client,
    ):
        await score(client)
    assert teacher.metadata[0]["authorization"] == f"Bearer {KEY}"


async def test_a_server_of_another_authority_gets_nothing(authority: Authority, tmp_path: Path) -> None:
    teacher = ScriptedTeacher()
    other = Authority(tmp_path, name="other")
    async with (
        serving_by_tls(teacher, authority) as address,
        TeacherClient(address, ca=other.ca, api_key=KEY, retry=QUICK) as client,
    ):
        with pytest.raises(TeacherUnavailableError, match=r"(?i)certificate|handshake|ssl"):
            await score(client, seconds=1)
    assert teacher.metadata == []


async def test_the_scheme_grpcs_believes_what_the_system_does(
    authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher = ScriptedTeacher()
    async with serving_by_tls(teacher, authority) as address:
        async with TeacherClient(f"grpcs://{address}", retry=QUICK) as client:
            with pytest.raises(TeacherUnavailableError):
                await score(client, seconds=1)
        monkeypatch.setenv("SSL_CERT_FILE", str(authority.ca))
        async with TeacherClient(f"grpcs://{address}") as client:
            await score(client)
            assert (await client.info()).server_version == "9.8.7"
    assert len(teacher.requests) == 1


async def test_a_certificate_of_its_own_lets_the_client_in_and_none_keeps_it_out(
    authority: Authority, tmp_path: Path
) -> None:
    teacher = ScriptedTeacher()
    clients = Authority(tmp_path, name="clients")
    async with serving_by_tls(teacher, authority, client_ca=clients.ca) as address:
        async with TeacherClient(address, ca=authority.ca, retry=QUICK) as client:
            with pytest.raises(TeacherUnavailableError):
                await score(client, seconds=1)
        assert teacher.requests == []
        async with TeacherClient(address, ca=authority.ca, cert=clients.client_pair()) as client:
            await score(client)
    assert len(teacher.requests) == 1


async def test_plain_text_to_a_tls_port_and_tls_to_a_plain_one_are_unavailable(authority: Authority) -> None:
    teacher = ScriptedTeacher()
    async with serving_by_tls(teacher, authority) as secure, serving(teacher) as plain:
        async with TeacherClient(secure, retry=QUICK) as client:
            with pytest.raises(TeacherUnavailableError):
                await score(client, seconds=1)
        async with TeacherClient(plain, ca=authority.ca, retry=QUICK) as client:
            with pytest.raises(TeacherUnavailableError):
                await score(client, seconds=1)
    assert teacher.requests == []


def test_certificates_come_from_the_environment_where_they_are_not_given(authority: Authority) -> None:
    certificate, key = authority.client_pair()
    environment = {
        "PRECEPTOR_CA": str(authority.ca),
        "PRECEPTOR_CERT": str(certificate),
        "PRECEPTOR_CERT_KEY": str(key),
    }
    access = find_access(environment=environment)
    assert (access.ca, access.cert) == (authority.ca, (certificate, key))
    with pytest.raises(ValueError, match="PRECEPTOR_CERT and PRECEPTOR_CERT_KEY go together"):
        find_access(environment={**environment, "PRECEPTOR_CERT_KEY": ""})


def test_files_that_are_no_certificates_are_refused_by_name(authority: Authority, tmp_path: Path) -> None:
    certificate, key = authority.client_pair()
    _, other_key = authority.client_pair("other")
    (tmp_path / "text").write_text("no certificate")
    missing = tmp_path / "missing"
    with pytest.raises(ValueError, match=r"ca: .*missing cannot be used \(No such file"):
        find_access(ca=missing, environment={})
    with pytest.raises(ValueError, match=r"ca: .*text cannot be used .*: name a PEM file"):
        find_access(ca=tmp_path / "text", environment={})
    for pair in ((certificate, missing), (certificate, other_key), (key, certificate), (tmp_path / "text", key)):
        with pytest.raises(ValueError, match=rf"cert: {pair[0]} and its key {pair[1]} cannot be used"):
            find_access(cert=pair, environment={})


def test_one_server_named_with_and_without_the_scheme_is_named_twice() -> None:
    with pytest.raises(ValueError, match="names 'a:1' twice"):
        TeacherClient("a:1,grpcs://a:1")
