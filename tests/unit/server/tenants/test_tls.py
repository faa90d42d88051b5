from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path

import pytest
from preceptor_server.tenants.certificates import ServerCertificates
from preceptor_server.tenants.config import TlsConfig

from tests.certificates import Authority, Issued
from tests.unit.server.tenants.tls_servers import (
    REFUSED,
    WORD,
    Ask,
    ask_grpc,
    ask_http,
    call,
    grpc_channel,
    grpc_server,
    http_server,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """A server, and how its clients ask it."""

    serve: Callable[[ServerCertificates], AbstractAsyncContextManager[int]]
    ask: Ask
    alpn: tuple[str, ...]


SIDES = {
    "grpc": Side(serve=grpc_server, ask=ask_grpc, alpn=("h2",)),
    "http": Side(serve=http_server, ask=ask_http, alpn=("http/1.1",)),
}


@pytest.fixture(params=SIDES)
def side(request: pytest.FixtureRequest) -> Side:
    return SIDES[request.param]


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


@pytest.fixture
def stranger(tmp_path: Path) -> Authority:
    return Authority(tmp_path, "stranger")


def certificates_of(issued: Issued, *, client_ca: Path | None = None) -> ServerCertificates:
    return ServerCertificates(
        TlsConfig(
            certificate=issued.certificate,
            key=issued.key,
            client_ca=client_ca,
            require_client_certificate=client_ca is not None,
        )
    )


def put(issued: Issued, *, over: Issued) -> None:
    """As whoever renews a certificate does it."""
    issued.key.replace(over.key)
    issued.certificate.replace(over.certificate)


async def test_only_a_client_that_trusts_the_authority_is_served(
    side: Side, authority: Authority, stranger: Authority
) -> None:
    async with side.serve(certificates_of(authority.issue())) as port:
        assert await side.ask(port, ca=authority.ca) == WORD
        assert await side.ask(port, ca=stranger.ca) == REFUSED
        assert await side.ask(port, ca=authority.ca) == WORD


async def test_plaintext_is_refused(side: Side, authority: Authority) -> None:
    async with side.serve(certificates_of(authority.issue())) as port:
        assert await side.ask(port, ca=None) == REFUSED
        assert await side.ask(port, ca=authority.ca) == WORD


async def test_a_server_of_another_name_is_refused(side: Side, authority: Authority) -> None:
    async with side.serve(certificates_of(authority.issue(identities=("elsewhere.example",)))) as port:
        assert await side.ask(port, ca=authority.ca) == REFUSED


async def test_where_certificates_are_asked_of_clients_others_are_refused(
    side: Side, authority: Authority, stranger: Authority, tmp_path: Path
) -> None:
    clients = Authority(tmp_path, "clients")
    client, foreign = clients.issue("client"), stranger.issue("client")
    async with side.serve(certificates_of(authority.issue(), client_ca=clients.ca)) as port:
        assert await side.ask(port, ca=authority.ca, cert=client) == WORD
        assert await side.ask(port, ca=authority.ca) == REFUSED
        assert await side.ask(port, ca=authority.ca, cert=foreign) == REFUSED
        assert await side.ask(port, ca=None) == REFUSED
        assert await side.ask(port, ca=authority.ca, cert=client) == WORD


async def test_a_certificate_replaced_while_serving_is_the_one_of_new_connections(
    side: Side, authority: Authority, stranger: Authority
) -> None:
    """The new one is another authority's, so that a client tells the two apart."""
    issued = authority.issue()
    certificates = certificates_of(issued)
    async with side.serve(certificates) as port:
        for successor in (stranger, authority, stranger):
            put(successor.issue("successor"), over=issued)
            certificates.refresh()
            other = authority if successor is stranger else stranger
            assert await side.ask(port, ca=successor.ca) == WORD
            assert await side.ask(port, ca=other.ca) == REFUSED


async def test_an_open_connection_outlives_the_certificate(authority: Authority, stranger: Authority) -> None:
    issued = authority.issue()
    certificates = certificates_of(issued)
    async with grpc_server(certificates) as port, grpc_channel(port, ca=authority.ca) as channel:
        assert await call(channel) == WORD
        put(stranger.issue("successor"), over=issued)
        certificates.refresh()
        assert await ask_grpc(port, ca=authority.ca) == REFUSED
        assert await call(channel) == WORD


async def test_a_broken_certificate_leaves_the_one_in_force(side: Side, authority: Authority) -> None:
    issued = authority.issue()
    certificates = certificates_of(issued)
    async with side.serve(certificates) as port:
        issued.certificate.write_text("nonsense")
        certificates.refresh()
        assert await side.ask(port, ca=authority.ca) == WORD
    assert certificates.num_reload_failures == 1


async def test_the_authority_of_clients_is_replaced_while_serving(
    side: Side, authority: Authority, stranger: Authority, tmp_path: Path
) -> None:
    clients = Authority(tmp_path, "clients")
    old, new = clients.issue("client"), stranger.issue("client")
    certificates = certificates_of(authority.issue(), client_ca=clients.ca)
    async with side.serve(certificates) as port:
        assert await side.ask(port, ca=authority.ca, cert=old) == WORD
        assert await side.ask(port, ca=authority.ca, cert=new) == REFUSED
        clients.ca.write_bytes(stranger.ca.read_bytes())
        certificates.refresh()
        assert await side.ask(port, ca=authority.ca, cert=old) == REFUSED
        assert await side.ask(port, ca=authority.ca, cert=new) == WORD


async def test_two_ports_follow_the_same_files(authority: Authority, stranger: Authority) -> None:
    issued = authority.issue()
    certificates = certificates_of(issued)
    async with grpc_server(certificates) as one, grpc_server(certificates) as two, http_server(certificates) as three:
        put(stranger.issue("successor"), over=issued)
        certificates.refresh()
        assert await ask_grpc(one, ca=stranger.ca) == await ask_grpc(two, ca=stranger.ca) == WORD
        assert await ask_http(three, ca=stranger.ca) == WORD


async def handshake(port: int, *, ca: Path, alpn: tuple[str, ...], version: ssl.TLSVersion, name: str | None) -> str:
    """The version that was agreed on, or REFUSED."""
    context = ssl.create_default_context(cafile=ca)
    context.set_alpn_protocols(list(alpn))
    context.check_hostname = name is not None
    context.set_ciphers("DEFAULT@SECLEVEL=0")  # else this client would not even offer what is old
    context.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
    context.maximum_version = version
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context, server_hostname=name or "")
    except (ssl.SSLError, ConnectionError):
        return REFUSED
    agreed = writer.get_extra_info("ssl_object").version()
    writer.close()
    return str(agreed)


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning")
async def test_versions_before_1_2_are_refused(side: Side, authority: Authority) -> None:
    async with side.serve(certificates_of(authority.issue())) as port:
        agreed = [
            await handshake(port, ca=authority.ca, alpn=side.alpn, version=version, name="localhost")
            for version in (
                ssl.TLSVersion.TLSv1,
                ssl.TLSVersion.TLSv1_1,
                ssl.TLSVersion.TLSv1_2,
                ssl.TLSVersion.TLSv1_3,
            )
        ]
    assert agreed == [REFUSED, REFUSED, "TLSv1.2", "TLSv1.3"]


async def test_a_client_that_names_no_server_gets_the_certificate_in_force(
    side: Side, authority: Authority, stranger: Authority
) -> None:
    issued = authority.issue()
    certificates = certificates_of(issued)
    async with side.serve(certificates) as port:
        put(stranger.issue("successor"), over=issued)
        certificates.refresh()
        for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
            asked = [
                await handshake(port, ca=one.ca, alpn=side.alpn, version=version, name=None)
                for one in (stranger, authority)
            ]
            assert asked == [version.name.replace("v1_", "v1."), REFUSED]


def ask_once(port: int, context: ssl.SSLContext, session: ssl.SSLSession | None) -> tuple[bool, ssl.SSLSession | None]:
    """Whether the server answered, and the session that it gave."""
    plain = socket.create_connection(("127.0.0.1", port), timeout=20)
    try:
        with plain, context.wrap_socket(plain, server_hostname="localhost", session=session) as connection:
            connection.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
            return bool(connection.recv(1)), connection.session
    except OSError:  # ssl.SSLError is one
        return False, None


async def test_a_session_is_not_resumed_once_the_authority_of_its_client_was_taken_away(
    side: Side, authority: Authority, stranger: Authority, tmp_path: Path
) -> None:
    clients = Authority(tmp_path, "clients")
    client = clients.issue("client")
    certificates = certificates_of(authority.issue(), client_ca=clients.ca)
    contexts = []
    for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
        context = ssl.create_default_context(cafile=authority.ca)
        context.load_cert_chain(client.certificate, client.key)
        context.maximum_version = version
        context.set_alpn_protocols(list(side.alpn))
        contexts.append(context)
    async with side.serve(certificates) as port:
        before = [await asyncio.to_thread(ask_once, port, context, None) for context in contexts]
        clients.ca.write_bytes(stranger.ca.read_bytes())
        certificates.refresh()
        after = [
            await asyncio.to_thread(ask_once, port, context, session)
            for context, (_, session) in zip(contexts, before, strict=True)
        ]
    assert [is_answered for is_answered, _ in before] == [side is SIDES["grpc"], True]
    assert [is_answered for is_answered, _ in after] == [False, False]
