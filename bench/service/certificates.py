"""Authorities and certificates for one run, made by openssl. Nobody else trusts them."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path

_EC = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-noenc")


@dataclass(frozen=True, slots=True, kw_only=True)
class Issued:
    """PEM files of an authority, and of a server of 127.0.0.1 and localhost that it vouches for."""

    ca: Path
    certificate: Path
    key: Path


def issue(folder: Path, name: str) -> Issued:
    """Raises CalledProcessError where openssl fails, FileNotFoundError where it is missing."""
    folder.mkdir(parents=True, exist_ok=True)
    ca, ca_key, request = (folder / f"{name}-{part}" for part in ("ca.pem", "ca-key.pem", "server.csr"))
    issued = Issued(ca=ca, certificate=folder / f"{name}.pem", key=folder / f"{name}-key.pem")
    subject = ("-subj", f"/CN={name}")
    _openssl("req", "-x509", *_EC, "-days", "2", *subject, "-keyout", str(ca_key), "-out", str(ca))
    names = ("-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1")
    _openssl("req", *_EC, *subject, *names, "-keyout", str(issued.key), "-out", str(request))
    by = ("-CA", str(ca), "-CAkey", str(ca_key), "-CAcreateserial")
    _openssl(
        *("x509", "-req", "-in", str(request), "-copy_extensions", "copy", *by),
        *("-days", "2", "-out", str(issued.certificate)),
    )
    return issued


def _openssl(*arguments: str) -> None:
    subprocess.run(["openssl", *arguments], check=True, capture_output=True)
