"""Opens the connection to one teacher server: its address, its limits, and the name that the caller goes by."""

from __future__ import annotations

import os
import secrets
import socket

import grpc

_MAX_PORT = 65_535


def checked_address(address: str) -> str:
    """`address` itself. Raises ValueError unless it is host:port."""
    if "://" in address:
        raise ValueError(f"address {address!r} has a scheme: write host:port, such as {address.split('://')[1]!r}")
    host, _, port = address.rpartition(":")
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
    if repeated := [part for part in parts if parts.count(part) > 1]:
        raise ValueError(f"address {addresses!r} names {repeated[0]!r} twice: name each server once")
    return tuple(checked_address(part) for part in parts)


def split_address(address: str) -> tuple[str, int]:
    """Host, without brackets, and port of a checked address."""
    host, _, port = checked_address(address).rpartition(":")
    return host.strip("[]"), int(port)


def checked_caller(caller: str) -> str:
    """`caller`, or host-pid-random where it is empty. Raises ValueError on what metadata cannot carry."""
    if not caller:
        host = socket.gethostname().encode("ascii", "replace").decode()
        return f"{host}-{os.getpid()}-{secrets.token_hex(4)}"
    if not (caller.isascii() and caller.isprintable()):
        raise ValueError(f"caller {caller!r} must be printable ASCII")
    return caller


def open_channel(address: str, *, max_message_bytes: int) -> grpc.aio.Channel:
    """A channel of the running event loop; nothing connects until the first call."""
    return grpc.aio.insecure_channel(
        address,
        options=[
            ("grpc.max_send_message_length", max_message_bytes),
            ("grpc.max_receive_message_length", max_message_bytes),
            # A teacher that comes back shall be noticed soon; gRPC's own backoff grows to two minutes.
            ("grpc.initial_reconnect_backoff_ms", 200),
            ("grpc.max_reconnect_backoff_ms", 2_000),
            # Finds out within half a minute that a machine vanished without a word.
            ("grpc.keepalive_time_ms", 20_000),
            ("grpc.keepalive_timeout_ms", 10_000),
        ],
    )
