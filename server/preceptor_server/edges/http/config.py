"""Typed settings of the HTTP side. Imports no web framework, so that a server without it needs none."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Self

from preceptor.settings import Section
from pydantic import AfterValidator, DirectoryPath, Field, field_validator, model_validator

_NAME = r"[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\]"
_HOST = re.compile(_NAME)
_ORIGIN = re.compile(rf"(https?://(?:{_NAME})(?::[0-9]{{1,5}})?)/?")


def _check_origin(origin: str) -> str:
    """It goes into headers as it is, so it must hold nothing else than a scheme, a host and a port."""
    match = _ORIGIN.fullmatch(origin)
    if match is None:
        raise ValueError(f"{origin!r} is no origin: write it as http://host:port, without a path")
    return match[1].lower()


def _check_host_name(host: str) -> str:
    if not _HOST.fullmatch(host):
        raise ValueError(f"{host!r} is no name of a host: write it without scheme, port and path")
    return host.lower()


def in_existing_folder(file: Path | None) -> Path | None:
    """It is written minutes later, once the model is loaded: a folder that is missing is told before."""
    if file is not None and not file.parent.is_dir():
        raise ValueError(f"folder {file.parent} does not exist: make it, or name another file")
    return file


Origin = Annotated[str, AfterValidator(_check_origin)]
HostName = Annotated[str, AfterValidator(_check_host_name)]


class HttpConfig(Section):
    """The debug API and its page."""

    host: str = "127.0.0.1"
    """Address to bind. Anything but a loopback address needs keys (`access.file`) and `tls`, or `allow_insecure`."""
    port: int | None = Field(None, ge=0, le=65535)
    """Port to bind; 0 asks the kernel for a free one (see `address_file`). Default: none, and there is no HTTP."""
    allow_insecure: bool = False
    """Bind to a public address although anyone who reaches it may use the teacher."""
    address_file: Path | None = None
    """Write "host:port" into this file once the server answers and the teacher serves."""
    allowed_hosts: tuple[HostName, ...] = ()
    """Names that callers may reach it by, besides its own address: what a proxy or a cluster calls it."""
    allow_origins: tuple[Origin, ...] = ()
    """Pages of other servers that may ask this one from a browser, such as "http://127.0.0.1:8081". Default: none."""
    compare_with: tuple[Origin, ...] = ()
    """Other teachers' HTTP addresses that this server's page may ask, to lay two teachers side by side. Each must name
    this one in its `allow_origins`."""
    tokenizers: dict[str, DirectoryPath] = Field(default_factory=dict)
    """Students' tokenizers by a name of your choice: folders with a tokenizer.json, such as {"student":
    "models/student"}. A request may then say `"tokenizer": "student"` and send text."""
    record: int = Field(0, ge=0, le=100_000)
    """Keep the groups scored last, this many, of all callers, gRPC's among them, for GET /v1/requests. Default: none,
    for prompts are other people's."""
    record_bytes: int = Field(64 * 1024 * 1024, ge=0)
    """Memory that these may take, in bytes; the oldest make room."""
    max_body_bytes: int = Field(8 * 1024 * 1024, ge=1024)
    """Largest request, in bytes."""
    head_seconds: float = Field(10.0, gt=0)
    """How long a request's line and headers may take to arrive, in seconds."""
    timeout_seconds: float = Field(60.0, gt=0, le=3600)
    """How long a request may take, waiting included, in seconds."""
    max_groups: int = Field(2, ge=1)
    """Groups from HTTP that are scored at once. The others wait their turn."""
    max_waiting: int = Field(32, ge=0)
    """Requests that may wait for their turn; beyond it callers are told to come back later."""
    share: float = Field(0.02, gt=0, le=1)
    """Share of the teacher's time that HTTP may take while gRPC callers are at work, and what its tokens weigh in the
    queue; all of it while they are not."""

    @field_validator("address_file")
    @classmethod
    def _has_a_folder(cls, address_file: Path | None) -> Path | None:
        return in_existing_folder(address_file)

    @model_validator(mode="after")
    def _check_port(self) -> Self:
        changed = sorted(name for name in self.model_fields_set if getattr(self, name) != _default(self, name))
        if self.port is None and changed:
            raise ValueError(f"http.{changed[0]} is set, and there is no HTTP: set http.port, or leave it out")
        return self


def _default(config: HttpConfig, name: str) -> object:
    return type(config).model_fields[name].get_default(call_default_factory=True)
