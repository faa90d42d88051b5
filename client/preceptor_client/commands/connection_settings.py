"""The settings that every command shares which talks to a teacher server: whom to ask, and for which teacher."""

from __future__ import annotations

from pathlib import Path
from typing import TypedDict

from pydantic import Field
from pydantic_settings import BaseSettings, CliImplicitFlag, SettingsConfigDict

from preceptor_client.tls import Pair


class AccessOptions(TypedDict):
    """Key and certificates, as arguments of a client."""

    api_key_file: Path | None
    insecure_key: bool
    ca: Path | None
    cert: Pair | None


class ConnectionSettings(BaseSettings):
    """A server, and a teacher on it. How long to wait is each command's own: seconds for a score, or minutes."""

    model_config = SettingsConfigDict(
        frozen=True,
        extra="forbid",
        env_prefix="PRECEPTOR_",
        env_nested_delimiter="__",
        cli_kebab_case=True,
        use_attribute_docstrings=True,
    )

    address: str = Field(min_length=3)
    """The teacher server, as HOST:PORT; several with commas between: replicas of one teacher."""
    teacher: str = ""
    """Name of the teacher; may be left out where the server hosts one."""
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
        """Raises ValueError where one of a pair is missing."""
        if (self.cert is None) != (self.cert_key is None):
            raise ValueError("--cert and --cert-key go together: give both, or neither")
        return AccessOptions(
            api_key_file=self.api_key_file,
            insecure_key=self.insecure_key,
            ca=self.ca,
            cert=(self.cert, self.cert_key) if self.cert and self.cert_key else None,
        )
