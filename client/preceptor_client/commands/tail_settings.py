"""Every setting of `preceptor tail`: types and bounds."""

from __future__ import annotations

from pydantic import Field, field_validator
from pydantic_settings import CliImplicitFlag, CliPositionalArg, SettingsConfigDict

from preceptor_client.commands.access_settings import AccessSettings
from preceptor_client.url import checked_url


class TailSettings(AccessSettings):
    """Shows the requests of a teacher server as they end, whoever asked and whichever way: one line each."""

    model_config = SettingsConfigDict(
        frozen=True,
        extra="forbid",
        env_prefix="PRECEPTOR_TAIL_",
        cli_kebab_case=True,
        use_attribute_docstrings=True,
        cli_shortcuts={"as-json": "json"},
    )

    url: CliPositionalArg[str]
    """The server's HTTP side: http://HOST:PORT. It must record (its http.record)."""
    last: int = Field(10, ge=0, le=1000)
    """How many of the requests that have ended already to show first."""
    follow: CliImplicitFlag[bool] = True
    """Go on showing what ends from now on, until Ctrl-C."""
    as_json: CliImplicitFlag[bool] = False
    """Print one JSON object a line, for programs; docs/http.md names its fields."""
    timeout_seconds: float = Field(60.0, gt=0, le=86_400)
    """How long to go on asking a server that does not answer, before giving up."""

    @field_validator("url")
    @classmethod
    def _url_is_one(cls, url: str) -> str:
        return checked_url(url)
