"""The settings by which a command shows who it is and knows its server. A key itself is none: others see argv."""

from __future__ import annotations

from pathlib import Path

from pydantic_settings import BaseSettings, CliImplicitFlag

from preceptor_client.access import AccessOptions


class AccessSettings(BaseSettings):
    """A key's file, and certificates; what is left out comes from the environment (`preceptor_client.access`)."""

    api_key_file: Path | None = None
    """File that holds the API key alone, in one line; else the key is that of the variable PRECEPTOR_API_KEY. No
    option takes the key itself: a list of processes would show it."""
    insecure_key: CliImplicitFlag[bool] = False
    """Send the key in plain text to another machine, where the network encrypts by itself."""
    ca: Path | None = None
    """PEM file of the certificates by which the server is known: it is asked by TLS then."""
    cert: Path | None = None
    """PEM file of the certificate by which the server knows this client, with --cert-key."""
    cert_key: Path | None = None
    """PEM file of that certificate's private key."""

    def access(self) -> AccessOptions:
        """Key and certificates, as arguments of a client. Raises ValueError where one of a pair is missing."""
        if (self.cert is None) != (self.cert_key is None):
            raise ValueError("--cert and --cert-key go together: give both, or neither")
        return AccessOptions(
            api_key_file=self.api_key_file,
            insecure_key=self.insecure_key,
            ca=self.ca,
            cert=(self.cert, self.cert_key) if self.cert and self.cert_key else None,
        )
