"""The address that a call comes from, as a name: without its port, and one for all that one host can choose among."""

from __future__ import annotations

from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from urllib.parse import unquote

UNIX = "unix"
UNKNOWN = "unknown"


@lru_cache(maxsize=4096)  # asked for every request, and a connection's requests have one peer
def peer_name(peer: str, *, ipv6_prefix: int = 128) -> str:
    """The name of a peer that gRPC or an ASGI server tells: "ipv4:10.0.0.7:5312", "ipv6:%5B::1%5D:5312", "unix:/run/x",
    "10.0.0.7". IPv6 addresses that agree in their first `ipv6_prefix` bits have one name. All Unix sockets share one,
    for only this machine reaches them; so does whatever is no address."""
    scheme, found, rest = peer.partition(":")
    if found and scheme in ("unix", "unix-abstract"):
        return UNIX
    spelled = unquote(rest if found and scheme in ("ipv4", "ipv6") else peer)
    address = _address_in(spelled)
    if address is None:
        return UNKNOWN
    if isinstance(address, IPv6Address):
        if address.ipv4_mapped is not None:
            return str(address.ipv4_mapped)
        if ipv6_prefix < address.max_prefixlen and not address.is_loopback:
            return str(ip_network((int(address), ipv6_prefix), strict=False))
        return str(IPv6Address(int(address)))  # without its zone
    return str(address)


def _address_in(spelled: str) -> IPv4Address | IPv6Address | None:
    """Of "address", "address:port" and "[address]:port"."""
    if spelled.startswith("["):
        spelled = spelled[1:].partition("]")[0]
    elif spelled.count(":") == 1:
        spelled = spelled.partition(":")[0]
    try:
        return ip_address(spelled)
    except ValueError:
        return None
