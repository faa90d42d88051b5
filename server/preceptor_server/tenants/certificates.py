"""The server's certificate, its key, and the authority of its clients: read, checked, read again when they change."""

from __future__ import annotations

import logging
import ssl
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

from preceptor_server.errors import StartupError
from preceptor_server.tenants.certificate_dates import validity_of
from preceptor_server.tenants.config import TlsConfig
from preceptor_server.tenants.reloading import ReloadedFiles

logger = logging.getLogger(__name__)

_SOON = timedelta(days=14)
_READABLE_BY_OTHERS = 0o004
"""Its group may: that is how Kubernetes lets a process without root read a mounted secret."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Certificates:
    """What was read, and found to fit together."""

    certificate: bytes
    """PEM: the server's own, then those that lead to its authority."""
    key: bytes = field(repr=False)
    client_ca: bytes | None
    valid_from: datetime
    valid_until: datetime
    context: ssl.SSLContext = field(repr=False, compare=False)
    """For Python's TLS."""


class ServerCertificates:
    """The certificates in force."""

    def __init__(self, config: TlsConfig) -> None:
        """Reads. Raises StartupError, which names the file and the fix, where they cannot be used."""
        assert config.certificate is not None, "without a certificate there is no TLS"
        assert config.key is not None
        paths = [one for one in (config.certificate, config.key, config.client_ca) if one is not None]
        self.requires_client_certificate = config.require_client_certificate
        self._files = ReloadedFiles(
            f"tls.certificate={config.certificate}", load=lambda: read_certificates(config), paths=lambda: paths
        )
        self._tell_dates()
        if config.key.stat().st_mode & _READABLE_BY_OTHERS:
            logger.warning("tls.key=%s can be read by others: chmod o-rwx", config.key)

    @property
    def value(self) -> Certificates:
        return self._files.value

    @property
    def num_reloads(self) -> int:
        return self._files.num_reloads

    @property
    def num_reload_failures(self) -> int:
        """How often the files became ones that cannot be used; the certificate from before stays in force."""
        return self._files.num_failures

    def refresh(self) -> None:
        """Reads again where the files changed. A Reloader calls it."""
        before = self._files.num_reloads
        self._files.refresh()
        if self._files.num_reloads != before:
            self._tell_dates()

    def _tell_dates(self) -> None:
        now, value = datetime.now(UTC), self._files.value
        until = value.valid_until.isoformat()
        if now >= value.valid_until:
            logger.warning("tls.certificate expired at %s: clients refuse it until it is replaced", until)
        elif now < value.valid_from:
            logger.warning(
                "tls.certificate is valid from %s on: clients refuse it before", value.valid_from.isoformat()
            )
        elif value.valid_until - now < _SOON:
            logger.warning("tls.certificate expires at %s: replace it, the server reads the new one", until)
        else:
            logger.info("tls.certificate is valid until %s", until)


def read_certificates(config: TlsConfig) -> Certificates:
    """Raises StartupError where a file is missing, is no PEM, or does not belong to the others."""
    assert config.certificate is not None
    assert config.key is not None
    certificate, key = _pem(config.certificate, "certificate", b"CERTIFICATE"), _pem(config.key, "key", b"PRIVATE KEY")
    client_ca = None if config.client_ca is None else _pem(config.client_ca, "client_ca", b"CERTIFICATE")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    _load_chain(context, config.certificate, config.key)
    if (certificate, key) != (_pem(config.certificate, "certificate"), _pem(config.key, "key")):
        raise StartupError(f"tls: {config.certificate} or {config.key} changed while it was read")
    if client_ca is not None:
        context.verify_mode = ssl.CERT_REQUIRED
        # A resumed session would not show its client's certificate again, though its authority may have been taken away
        # since. In 1.3 sessions are resumed by tickets alone, and none are given; in 1.2 Python cannot turn it off.
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.num_tickets = 0
        try:
            context.load_verify_locations(cadata=client_ca.decode("ascii", errors="replace"))
        except ssl.SSLError as error:
            raise StartupError(f"tls.client_ca: {config.client_ca} cannot be used ({_said(error)})") from error
    try:
        valid_from, valid_until = validity_of(certificate)
    except ValueError as error:
        raise StartupError(f"tls.certificate: {config.certificate} has no dates that can be read ({error})") from error
    return Certificates(
        certificate=certificate,
        key=key,
        client_ca=client_ca,
        valid_from=valid_from,
        valid_until=valid_until,
        context=context,
    )


def _load_chain(context: ssl.SSLContext, certificate: Path, key: Path) -> None:
    def no_password() -> str:
        raise StartupError(
            f"tls.key: {key} has a password: write it without one (openssl pkey -in {key.name} -out NEW), readable by "
            "the server alone"
        )

    try:
        context.load_cert_chain(certificate, key, password=no_password)
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise StartupError(
                f"tls.key: {key} does not belong to the first certificate in {certificate}: name the key that it was "
                "made with, and let the server's own certificate stand first"
            ) from error
        raise StartupError(f"tls: {certificate} with {key} cannot be used ({_said(error)})") from error
    except OSError as error:
        raise StartupError(f"tls: {certificate} or {key} cannot be read ({error.strerror or error})") from error


def _pem(path: Path, setting: str, what: bytes = b"") -> bytes:
    """The file's bytes, in which there is a PEM block of `what`."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise StartupError(
            f"tls.{setting}: {path} cannot be read ({error.strerror or error}): name a PEM file that the "
            "server may read"
        ) from error
    if b"-----BEGIN " not in content or what + b"-----" not in content:
        raise StartupError(
            f"tls.{setting}: {path} is no PEM file with a {what.decode().lower()}: it must hold a block of text that "
            f"begins with -----BEGIN ...{what.decode()}-----"
        )
    return content


def _said(error: ssl.SSLError) -> str:
    return error.reason or str(error)
