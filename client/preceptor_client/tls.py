"""Reads the certificates by which this client knows its server, and by which it is known. Opens no connection."""

from __future__ import annotations

import ssl
from pathlib import Path

import grpc

Pair = tuple[Path, Path]
"""The files of a certificate and of its private key."""


def ssl_context(*, ca: Path | None, cert: Pair | None) -> ssl.SSLContext:
    """For HTTP; and a check, for gRPC takes any bytes and fails when it is called. Raises ValueError with the file."""
    try:
        context = ssl.create_default_context(cafile=ca)
    except (OSError, ssl.SSLError) as error:
        raise ValueError(f"ca: {ca} cannot be used ({_words(error)}): name a PEM file of certificates") from error
    if cert is None:
        return context
    try:
        # Where OpenSSL would ask for a password at the terminal, there is none.
        context.load_cert_chain(*cert, password=lambda: "")
    except (OSError, ssl.SSLError) as error:
        raise ValueError(
            f"cert: {cert[0]} and its key {cert[1]} cannot be used ({_words(error)}): name the PEM files of a "
            "certificate and of its private key, without a password"
        ) from error
    return context


def channel_credentials(*, ca: Path | None, cert: Pair | None) -> grpc.ChannelCredentials:
    """For gRPC, from the files as they are at this moment."""
    certificate, key = (path.read_bytes() for path in cert) if cert else (None, None)
    return grpc.ssl_channel_credentials(root_certificates=_roots(ca), private_key=key, certificate_chain=certificate)


def _roots(ca: Path | None) -> bytes | None:
    """The given ones, else the system's, SSL_CERT_FILE included; None = those that gRPC brings."""
    if ca is not None:
        return ca.read_bytes()
    system = ssl.get_default_verify_paths().cafile
    return Path(system).read_bytes() if system else None


def _words(error: OSError) -> str:
    return error.strerror or type(error).__name__
