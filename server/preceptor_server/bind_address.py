"""Which addresses can be reached from elsewhere, and the rule about binding to them. Opens no socket."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, ip_address


def as_ip(host: str) -> IPv4Address | IPv6Address | None:
    """The address that `host` spells; None where it is a name."""
    try:
        return ip_address(host)
    except ValueError:
        return None


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches it."""
    ip = as_ip(host)
    return host == "localhost" or (ip is not None and ip.is_loopback)


def refuse_public(host: str, *, allow_insecure: bool, has_tls: bool = False, has_keys: bool = False) -> None:
    """Raises ValueError, with the ways out, where `host` is reachable from elsewhere without both keys and TLS, and
    nobody said that it may be."""
    if is_loopback(host) or allow_insecure or (has_tls and has_keys):
        return
    lacks = "has no TLS" if has_keys else "has no keys" if has_tls else "has neither keys nor TLS"
    raise ValueError(
        f"host={host} is reachable from elsewhere and the server {lacks}: give it both (tls.certificate and tls.key, "
        "access.file), or set host=127.0.0.1, or allow_insecure=true if the network is trusted"
    )


def joined(host: str, port: int) -> str:
    """host:port, an IPv6 address in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
