from __future__ import annotations

from typing import Any

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st
from preceptor_server.tenants.peers import peer_name


@pytest.mark.parametrize(
    ("peer", "name"),
    [
        ("ipv4:10.0.0.7:5312", "10.0.0.7"),
        ("10.0.0.7", "10.0.0.7"),
        ("10.0.0.7:99", "10.0.0.7"),
        ("ipv6:[2001:db8::7]:5312", "2001:db8::7"),
        ("ipv6:%5B2001:db8::7%5D:5312", "2001:db8::7"),
        ("2001:db8:0:0::7", "2001:db8::7"),
        ("ipv6:[::ffff:10.0.0.7]:5312", "10.0.0.7"),
        ("::ffff:10.0.0.7", "10.0.0.7"),
        ("ipv6:%5Bfe80::1%25eth0%5D:5312", "fe80::1"),
        ("ipv6:[::1]:5312", "::1"),
        ("unix:/run/teacher.sock", "unix"),
        ("unix:", "unix"),
        ("unix-abstract:teacher", "unix"),
        ("", "unknown"),
        ("localhost", "unknown"),
        ("ipv4:999.1.1.1:3", "unknown"),
    ],
)
def test_a_peer_is_its_address_without_the_port(peer: str, name: str) -> None:
    assert peer_name(peer) == name


def test_addresses_of_one_ipv6_network_are_one_peer() -> None:
    names = {peer_name(f"ipv6:[2001:db8:1:2::{n:x}]:7", ipv6_prefix=64) for n in range(1, 300)}
    assert names == {"2001:db8:1:2::/64"}
    assert peer_name("ipv6:[2001:db8:1:3::1]:7", ipv6_prefix=64) == "2001:db8:1:3::/64"
    assert peer_name("ipv6:[2001:db8:1:2::1]:7", ipv6_prefix=48) == "2001:db8:1::/48"


def test_loopback_and_mapped_addresses_are_no_network() -> None:
    assert peer_name("::1", ipv6_prefix=64) == "::1"
    assert peer_name("ipv6:[::ffff:10.0.0.7]:5312", ipv6_prefix=64) == "10.0.0.7"


@given(st.text(max_size=60))
def test_whatever_is_no_address_is_one_name_that_is_safe_to_log(peer: str) -> None:
    name = peer_name(peer)
    assert name in ("unknown", "unix") or set(name) <= set("0123456789abcdef.:/")


async def test_a_real_server_tells_peers_that_are_understood() -> None:
    peers: list[str] = []

    async def note(request: bytes, context: grpc.aio.ServicerContext[bytes, bytes]) -> bytes:
        peers.append(peer_name(context.peer()))
        return b""

    handler = grpc.method_handlers_generic_handler("t.T", {"M": grpc.unary_unary_rpc_method_handler(note)})
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((handler,))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            call: Any = channel.unary_unary("/t.T/M")  # Any: the stubs know no call without serializers
            await call(b"")
    finally:
        await server.stop(0)
    assert peers == ["127.0.0.1"]
