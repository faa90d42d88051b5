"""Typed settings of metrics, traces and logs. Imports no library of these."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self
from urllib.parse import urlsplit

from preceptor.settings import Section
from pydantic import Field, field_validator, model_validator

from preceptor_server.bind_address import is_loopback

_OF_THE_LISTENER = ("address_file", "allow_insecure", "stuck_seconds")


class ObserveConfig(Section):
    """Metrics and probes on a port of their own, traces, logs."""

    host: str = "127.0.0.1"
    """Address to bind for /metrics, /healthz and /readyz. Anything but a loopback address needs `allow_insecure`, for
    there are no keys: whoever reaches it may read tenants' names and how much they ask."""
    port: int | None = Field(None, ge=0, le=65535)
    """Port to bind; 0 asks the kernel for a free one (see `address_file`). Default: none, and there is no listener."""
    allow_insecure: bool = False
    """Bind to a public address although anyone who reaches it may read the metrics."""
    address_file: Path | None = None
    """Write "host:port" into this file once it answers, which it does while the model is still loaded."""
    stuck_seconds: float = Field(300.0, gt=0)
    """How long the server's event loop may stand still before /healthz answers 503, in seconds."""
    max_tenants: int = Field(1000, ge=0)
    """Tenants that metrics tell apart by name; the others are counted as "other", and those without a key as
    "anonymous"."""
    log_format: Literal["text", "json"] = "text"
    """text: key=value. json: one object per line."""
    log_prompts: bool = False
    """Write prompts and responses into the log where an event is about one. Keys are never written."""
    otlp_endpoint: str | None = None
    """Collector that takes traces over OTLP/HTTP, such as "http://127.0.0.1:4318/v1/traces". Needs preceptor[otel].
    Default: none, and nothing is traced."""
    trace_share: float = Field(1.0, ge=0, le=1)
    """Share of the calls that are traced, of those whose caller sends no trace of its own; the others as it decided."""

    @field_validator("address_file")
    @classmethod
    def _has_a_folder(cls, address_file: Path | None) -> Path | None:
        if address_file is not None and not address_file.parent.is_dir():
            raise ValueError(f"folder {address_file.parent} does not exist: make it, or name another file")
        return address_file

    @field_validator("otlp_endpoint")
    @classmethod
    def _is_an_address(cls, endpoint: str | None) -> str | None:
        if endpoint is None:
            return None
        parts = urlsplit(endpoint)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"{endpoint!r} is no address: write it as http://host:4318/v1/traces")
        if parts.username or parts.password:
            raise ValueError(
                "must not hold a password, for settings are logged: set OTEL_EXPORTER_OTLP_HEADERS instead"
            )
        return endpoint

    @model_validator(mode="after")
    def _check_listener(self) -> Self:
        if self.port is not None:
            if not is_loopback(self.host) and not self.allow_insecure:
                raise ValueError(
                    f"host={self.host} is reachable from elsewhere, and metrics are shown without keys and TLS: set "
                    "host=127.0.0.1, or allow_insecure=true if the network is trusted"
                )
            return self
        for name in ("host", *_OF_THE_LISTENER):
            if getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(f"{name} is set, and there is no listener: set observe.port, or leave it out")
        return self

    @model_validator(mode="after")
    def _check_traces(self) -> Self:
        if self.otlp_endpoint is None and self.trace_share != type(self).model_fields["trace_share"].default:
            raise ValueError("trace_share is set, and nothing is traced: set observe.otlp_endpoint, or leave it out")
        return self
