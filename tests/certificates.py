"""Authorities and certificates for tests of TLS, in a folder of the test's own. Nobody else trusts them."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import trustme


@dataclass(frozen=True, slots=True, kw_only=True)
class Issued:
    """A certificate and its key, as PEM files."""

    certificate: Path
    key: Path

    def pair(self) -> tuple[bytes, bytes]:
        """(key, certificate), in gRPC's order."""
        return self.key.read_bytes(), self.certificate.read_bytes()


class Authority:
    """Issues certificates that whoever has `ca` believes."""

    def __init__(self, folder: Path, name: str = "authority") -> None:
        self._authority = trustme.CA(organization_name=name)
        self._folder = folder
        self._name = name
        self.ca = folder / f"{name}-ca.pem"
        """PEM file with the authority's own certificate."""
        self._authority.cert_pem.write_to_path(str(self.ca))

    def issue(
        self,
        name: str = "server",
        *,
        identities: tuple[str, ...] = ("localhost", "127.0.0.1"),
        not_before: datetime | None = None,
        not_after: datetime | None = None,
    ) -> Issued:
        """A certificate for a server or a client, in files of this name; those that stood there are replaced."""
        leaf = self._authority.issue_cert(*identities, not_before=not_before, not_after=not_after)
        issued = Issued(
            certificate=self._folder / f"{self._name}-{name}.pem", key=self._folder / f"{self._name}-{name}-key.pem"
        )
        issued.certificate.write_bytes(b"".join(blob.bytes() for blob in leaf.cert_chain_pems))
        issued.key.write_bytes(leaf.private_key_pem.bytes())
        issued.key.chmod(0o600)
        return issued
