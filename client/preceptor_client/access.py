"""How this client shows who it is and knows whom it asks: key, certificates, and where a key may go in plain text.

From arguments, else from the environment:

    api_key, api_key_file   PRECEPTOR_API_KEY, else the file PRECEPTOR_API_KEY_FILE
    ca                      PRECEPTOR_CA
    cert                    PRECEPTOR_CERT and PRECEPTOR_CERT_KEY
"""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

from preceptor_client.channel import SECURE_SCHEME
from preceptor_client.credential import Credential
from preceptor_client.tls import Pair, ssl_context


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """A key and certificates; without any, an anonymous caller in plain text."""

    credential: Credential | None = None
    ca: Path | None = None
    cert: Pair | None = None
    insecure_key: bool = False
    """Whether the key may be sent in plain text to another machine."""

    @property
    def has_certificates(self) -> bool:
        """Whether every address is asked by TLS, whatever it begins with."""
        return self.ca is not None or self.cert is not None

    def is_secure(self, address: str) -> bool:
        """Whether a gRPC address is asked by TLS."""
        return self.has_certificates or address.startswith(SECURE_SCHEME)

    def check(self, address: str, *, host: str, is_secure: bool) -> None:
        """Raises ValueError where the key would travel to another machine in plain text."""
        if self.credential is None or is_secure or self.insecure_key or is_loopback(host):
            return
        raise ValueError(
            f"the key of {self.credential.source} would go to {address} in plain text, for anybody on the way to read: "
            "use TLS (ca=..., or an address that begins with grpcs:// or https://), or allow it with insecure_key=True "
            "where the network encrypts by itself"
        )

    def authorization(self) -> tuple[tuple[str, str], ...]:
        """The entries of metadata, or headers, that carry the key; none without one."""
        return () if self.credential is None else (("authorization", self.credential.header()),)


class AccessOptions(TypedDict, total=False):
    """Keyword arguments of `find_access`, for what passes them on."""

    api_key: str | None
    api_key_file: Path | None
    ca: Path | None
    cert: Pair | None
    insecure_key: bool


def find_access(
    *,
    api_key: str | None = None,
    api_key_file: Path | None = None,
    ca: Path | None = None,
    cert: Pair | None = None,
    insecure_key: bool = False,
    environment: Mapping[str, str] = os.environ,
) -> Access:
    """What was given, and from the environment what was not. Raises ValueError on what cannot be used."""
    if api_key is not None and api_key_file is not None:
        raise ValueError("api_key and api_key_file are both given: leave one out")
    ca = ca or _path(environment, "PRECEPTOR_CA")
    cert = cert or _pair(environment)
    access = Access(
        credential=_credential(api_key, api_key_file, environment=environment),
        ca=ca,
        cert=cert,
        insecure_key=insecure_key,
    )
    if access.has_certificates:
        ssl_context(ca=ca, cert=cert)
    return access


def is_loopback(host: str) -> bool:
    """Whether what is sent to this host stays on this machine."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:  # a name
        return False


def _credential(api_key: str | None, path: Path | None, *, environment: Mapping[str, str]) -> Credential | None:
    if api_key is not None:
        return Credential(text=api_key, source="api_key")
    if path is not None:
        return Credential(path=path, source="api_key_file")
    if text := environment.get("PRECEPTOR_API_KEY"):
        return Credential(text=text, source="PRECEPTOR_API_KEY")
    if named := _path(environment, "PRECEPTOR_API_KEY_FILE"):
        return Credential(path=named, source="PRECEPTOR_API_KEY_FILE")
    return None


def _pair(environment: Mapping[str, str]) -> Pair | None:
    certificate, key = (_path(environment, name) for name in ("PRECEPTOR_CERT", "PRECEPTOR_CERT_KEY"))
    if certificate and key:
        return certificate, key
    if certificate or key:
        raise ValueError("PRECEPTOR_CERT and PRECEPTOR_CERT_KEY go together: set both, or neither")
    return None


def _path(environment: Mapping[str, str], name: str) -> Path | None:
    return Path(environment[name]) if environment.get(name) else None
