"""Typed settings of the teacher server. Imports no torch, so that a wrong setting is told at once."""

from __future__ import annotations

import resource
from pathlib import Path
from typing import Literal, Self

from preceptor.settings import Section
from pydantic import Field, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from preceptor_server.alignment.workbench_config import WorkbenchConfig
from preceptor_server.bind_address import refuse_public
from preceptor_server.edges.http.config import HttpConfig, in_existing_folder
from preceptor_server.engines.config import SETTINGS_BY_KIND, EngineConfig, VllmConfig
from preceptor_server.observability.config import ObserveConfig
from preceptor_server.scheduling.config import SchedulerConfig as SchedulerConfig
from preceptor_server.tenants.config import AccessConfig, TlsConfig


class ListenConfig(Section):
    """Where the server listens."""

    host: str = "127.0.0.1"
    """Address to bind. Anything but a loopback address needs keys (`access.file`) and `tls`, or `allow_insecure`."""
    port: int = Field(50051, ge=0, le=65535)
    """Port to bind; 0 asks the kernel for a free one (see `address_file`)."""
    allow_insecure: bool = False
    """Bind to a public address although anyone who reaches it may use the teacher."""
    address_file: Path | None = None
    """Write "host:port" into this file once the server answers."""
    drain_seconds: float = Field(30.0, ge=0)
    """After SIGTERM: how long requests in flight may take to finish, in seconds."""
    read_seconds: float = Field(30.0, gt=0)
    """How long a request may take to arrive, in seconds."""
    max_bytes_in_flight: int = Field(2 * 1024**3, ge=1024**2)
    """Bytes of the requests that are being read and served at once; beyond it callers are told to come back later."""
    max_calls_per_connection: int = Field(256, ge=1)
    """Calls at once over one connection; a client that wants more waits."""
    max_connections: int | None = Field(None, ge=1)
    """Connections at once. Default: half of what the process may open (ulimit -n)."""

    @property
    def most_connections(self) -> int:
        """`max_connections`, or its default on this machine."""
        if self.max_connections is not None:
            return self.max_connections
        return max(16, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2)

    @field_validator("address_file")
    @classmethod
    def _has_a_folder(cls, address_file: Path | None) -> Path | None:
        return in_existing_folder(address_file)


class LimitsConfig(Section):
    """What one request may ask for; GetInfo reports it."""

    max_top_k: int = Field(1024, ge=2)
    """Largest support, K; never more than the vocabulary."""
    max_responses: int = Field(1024, ge=1)
    """Most responses in a group."""
    max_group_tokens: int = Field(262_144, ge=2)
    """Most tokens in a group, its prompt counted once."""
    max_message_bytes: int = Field(64 * 1024 * 1024, ge=64 * 1024, le=2**31 - 1)
    """Largest request and largest answer, in bytes."""
    max_tokenizer_bytes: int = Field(48 * 1024 * 1024, ge=1024)
    """Largest tokenizer.json that a student may hand over, in bytes; Gemma's has 33 million."""
    max_tokenizers: int = Field(16, ge=1)
    """Students' tokenizers to keep; the one used least recently makes room. Each takes about 5 MB."""
    tokenizer_seconds: float = Field(30.0, gt=0)
    """How long a student's tokenizer may take to be read and compared, in seconds."""


class TeacherSettings(Section):
    """One of several teachers."""

    weight: float | None = Field(None, gt=0, le=1000)
    """Share of the machine beside other teachers that have a weight: their forwards then take turns, one at a time.
    Default: none, and its forwards wait for nobody's. Not for engines that batch by themselves (vllm)."""
    engine: EngineConfig
    """The model that answers."""
    scheduler: SchedulerConfig = SchedulerConfig()
    """How its requests become batches."""
    limits: LimitsConfig = LimitsConfig()
    """What one request to it may ask for."""

    @model_validator(mode="after")
    def _check_across(self) -> Self:
        queue, group = self.scheduler.max_queue_tokens, self.limits.max_group_tokens
        if queue < group:
            raise ValueError(
                f"scheduler.max_queue_tokens={queue} is below limits.max_group_tokens={group}, so the largest group "
                "could never be queued: raise one or lower the other"
            )
        for name in ("max_batch_tokens", "max_divided_groups", "batch_window_ms"):
            default = SchedulerConfig.model_fields[name].default
            if isinstance(self.engine, VllmConfig) and getattr(self.scheduler, name) != default:
                raise ValueError(
                    f"scheduler.{name} is not for engine.kind=vllm, which makes its own batches: leave it out, and set "
                    "max_num_batched_tokens in engine.arguments where its batches shall be of another size"
                )
        return self


class ServerConfig(BaseSettings):
    """Serves a teacher model: top-K logprobs for what students wrote, over gRPC, and over HTTP to debug. Settings come
    from the command line, else from PRECEPTOR_SERVER_... variables, else from TOML files that stand first: @ a.toml @
    b.toml ..."""

    model_config = SettingsConfigDict(
        frozen=True,
        extra="forbid",
        env_prefix="PRECEPTOR_SERVER_",
        env_nested_delimiter="__",
        cli_kebab_case=True,
        use_attribute_docstrings=True,
        nested_model_default_partial_update=True,
    )

    teacher: str = Field("teacher", min_length=1, max_length=128)
    """The name under which callers ask for this teacher."""
    listen: ListenConfig = ListenConfig()
    """Where the server listens."""
    access: AccessConfig = AccessConfig()
    """Who may ask."""
    tls: TlsConfig = TlsConfig()
    """TLS of gRPC and of HTTP."""
    http: HttpConfig = HttpConfig()
    """The debug API over HTTP, and its page."""
    engine: EngineConfig | None = Field(
        None, description=f"The model that answers. Required, unless `teachers` names several. {SETTINGS_BY_KIND}"
    )
    scheduler: SchedulerConfig = SchedulerConfig()
    """How requests become batches."""
    limits: LimitsConfig = LimitsConfig()
    """What one request may ask for."""
    teachers: dict[str, TeacherSettings] = Field(default_factory=dict)
    """Several teachers by name, each with an `engine`, and a `scheduler` and `limits` of its own where it needs them:
    [teachers.NAME.engine] in a file. They take the place of `teacher`, `engine`, `scheduler` and `limits`. SIGHUP has
    them read anew."""
    workbench: WorkbenchConfig = WorkbenchConfig()
    """Where what is too large for the event loop is done."""
    observe: ObserveConfig = ObserveConfig()
    """Metrics and probes on a port of their own, traces, logs."""
    objectives: dict[str, int] = Field(default_factory=dict)
    """Priorities by name: a caller that names one (preceptor-objective) has its groups scored before its tenant's
    others of lower priority. Any other name has priority 0."""
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    """How much to log."""

    @property
    def hosted(self) -> dict[str, TeacherSettings]:
        """The teachers by name, however they were named."""
        if self.teachers:
            return dict(self.teachers)
        assert self.engine is not None, "one of the two is set"
        return {self.teacher: TeacherSettings(engine=self.engine, scheduler=self.scheduler, limits=self.limits)}

    @property
    def max_message_bytes(self) -> int:
        """Largest message that a teacher takes."""
        return max(settings.limits.max_message_bytes for settings in self.hosted.values())

    @model_validator(mode="after")
    def _names_teachers_once(self) -> Self:
        if not self.teachers:
            if self.engine is None:
                raise ValueError("engine: is required: set engine.model to a hub id or a folder, or name [teachers]")
            TeacherSettings(engine=self.engine, scheduler=self.scheduler, limits=self.limits)
            return self
        for name in ("teacher", "engine", "scheduler", "limits"):
            if name in self.model_fields_set:
                raise ValueError(f"{name} is for a server with one teacher: set teachers.NAME.{name}, or leave it out")
        return self

    @model_validator(mode="after")
    def _check_public(self) -> Self:
        has_tls, has_keys = self.tls.is_on, self.access.requires_key
        for name, side in (("listen", self.listen), ("http", self.http)):
            if side.port is None:
                continue
            try:
                refuse_public(side.host, allow_insecure=side.allow_insecure, has_tls=has_tls, has_keys=has_keys)
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from error
        return self

    @field_validator("teachers")
    @classmethod
    def _names_fit(cls, teachers: dict[str, TeacherSettings]) -> dict[str, TeacherSettings]:
        for name in teachers:
            if not 1 <= len(name) <= 128 or not name.isprintable():
                raise ValueError(f"{name[:128]!r} is no name of a teacher: use 1 to 128 printable characters")
        return teachers
