"""Opens the channel to one teacher server: its address, its limits, and the name that the caller goes by."""

from __future__ import annotations

import os
import secrets
import socket

import grpc

SECURE_SCHEME = "grpcs://"
"""Before an address: asked by TLS, and believed by the system's certificates unless others are named."""
_MAX_PORT = 65_535


def checked_address(address: str) -> str:
    """`address` itself. Raises ValueError unless it is host:port, perhaps after grpcs://."""
    rest = without_scheme(address)
    if "://" in rest:
        raise ValueError(
            f"address {address!r} has a scheme: write host:port, such as {rest.split('://')[1]!r}, or {SECURE_SCHEME} "
            "before it for TLS"
        )
    host, _, port = rest.rpartition(":")
    if not host or not (port.isascii() and port.isdigit() and 0 < int(port) <= _MAX_PORT):
        raise ValueError(f"address {address!r} has no port: write host:port, such as 'teacher.example:50051'")
    if ":" in host and not (host.startswith("[") and host.endswith("]")):
        raise ValueError(f"address {address!r} is ambiguous: write an IPv6 host in brackets, such as '[::1]:50051'")
    return address


def checked_addresses(addresses: str) -> tuple[str, ...]:
    """The parts of "host:port,host:port", servers that host the same teacher. Raises ValueError unless each is one."""
    parts = tuple(part.strip() for part in addresses.split(","))
    if len(parts) > 1 and not all(parts):
        raise ValueError(f"address {addresses!r} has an empty part: write host:port,host:port")
    bare = [without_scheme(part) for part in parts]
    if repeated := [part for part in bare if bare.count(part) > 1]:
        raise ValueError(f"address {addresses!r} names {repeated[0]!r} twice: name each server once")
    return tuple(checked_address(part) for part in parts)


def split_address(address: str) -> tuple[str, int]:
    """Host, without brackets, and port of a checked address."""
    host, _, port = without_scheme(checked_address(address)).rpartition(":")
    return host.strip("[]"), int(port)


def without_scheme(address: str) -> str:
    """host:port."""
    return address.removeprefix(SECURE_SCHEME)


def checked_caller(caller: str) -> str:
    """`caller`, or host-pid-random where it is empty. Raises ValueError on what metadata cannot carry."""
    if not caller:
        host = socket.gethostname().encode("ascii", "replace").decode()
        return f"{host}-{os.getpid()}-{secrets.token_hex(4)}"
    return checked_value("caller", caller)


def checked_value(name: str, value: str) -> str:
    """`value` itself. Raises ValueError on what metadata cannot carry."""
    if not (value.isascii() and (value.isprintable() or not value)):
        raise ValueError(f"{name} {value!r} must be printable ASCII")
    return value


def open_channel(
    address: str,
    *,
    max_message_bytes: int,
    credentials: grpc.ChannelCredentials | None = None,
    may_use_proxy: bool = True,
) -> grpc.aio.Channel:
    """A channel of the running event loop; nothing connects until the first call. Plain text without `credentials`.
    With `may_use_proxy` it goes through the proxy that the environment names, if any."""
    options = [
        ("grpc.max_send_message_length", max_message_bytes),
        ("grpc.max_receive_message_length", max_message_bytes),
        # Of its own, not shared with other clients of this process: what bounds its calls bounds a connection's.
        ("grpc.use_local_subchannel_pool", 1),
        # A teacher that comes back shall be noticed soon; gRPC's own backoff grows to two minutes.
        ("grpc.initial_reconnect_backoff_ms", 200),
        ("grpc.max_reconnect_backoff_ms", 2_000),
        # Finds out within half a minute that a machine vanished without a word.
        ("grpc.keepalive_time_ms", 20_000),
        ("grpc.keepalive_timeout_ms", 10_000),
        ("grpc.enable_http_proxy", int(may_use_proxy)),
    ]
    if credentials is None:
        return grpc.aio.insecure_channel(without_scheme(address), options=options)
    return grpc.aio.secure_channel(without_scheme(address), credentials, options=options)
