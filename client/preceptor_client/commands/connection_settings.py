"""Settings shared by commands that talk to a teacher server: whom to ask, who asks, and for which teacher."""

from __future__ import annotations

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from preceptor_client.commands.access_settings import AccessSettings


class ConnectionSettings(AccessSettings):
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
    """The teacher server, as HOST:PORT; several with commas between: replicas of one teacher. grpcs://HOST:PORT is
    asked by TLS, and known by the system's certificates."""
    teacher: str = ""
    """Name of the teacher; may be left out where the server hosts one."""
