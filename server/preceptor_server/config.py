"""Typed settings of the teacher server. Imports no torch, so that a wrong setting is told at once."""

from __future__ import annotations

import os
import resource
from pathlib import Path
from typing import Any, Literal, Self

from preceptor.settings import Section
from pydantic import DirectoryPath, Field, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from preceptor_server.bind_address import refuse_public
from preceptor_server.edges.http.config import HttpConfig, in_existing_folder
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


class VllmConfig(Section):
    """How vLLM is run, where engine.kind is vllm."""

    path: Literal["auto", "fast", "stock"] = "auto"
    """fast: columns are computed inside vLLM's workers, of response rows only, prompts come from its cache, every
    temperature and candidate works; needs a model that vLLM implements. stock: vLLM's own prompt logprobs, on any
    version: temperature 1, no candidates, no entropies, slower. auto: fast where it works, else stock, with a warning
    that says why."""
    arguments: dict[str, Any] = Field(default_factory=dict)
    """vLLM's engine arguments by their own names, such as {"tensor_parallel_size": 4, "enable_lora": true,
    "gpu_memory_utilization": 0.9, "distributed_executor_backend": "ray"}."""
    max_tokens_in_flight: int | None = Field(None, ge=1)
    """Tokens handed to vLLM at once; the rest waits here, where callers share fairly. Default: four of its batches."""


class EngineConfig(Section):
    """The model that answers."""

    kind: Literal["hf", "vllm", "fake"] = "hf"
    """hf: a causal language model run by transformers. vllm: large models, many GPUs (see engine.vllm). fake: a
    deterministic stand-in without weights, for tests."""
    model: str = ""
    """Hub id or folder of the model. Required for hf and vllm."""
    vllm: VllmConfig = VllmConfig()
    """How vLLM is run, where engine.kind is vllm."""
    gguf_file: str | None = None
    """Name of a GGUF file inside that folder, when the weights come as one."""
    tokenizer: str | None = None
    """Hub id or folder of the tokenizer. Default: the model's; the fake engine has none."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision of the weights and of the forward."""
    head_dtype: Literal["float32", "model"] = "float32"
    """Precision of the output head. In bfloat16 a logit near 20 is off by up to 0.06 nats and near ties swap."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the model runs; auto takes CUDA when there is one."""
    packing: Literal["auto", "packed", "sequential"] = "auto"
    """packed: all groups of a batch in one forward, shared prefixes once. sequential: one forward per response, for
    architectures that packing does not fit (state-space layers, attention of their own). auto: packed where the
    start-up self-test finds it right, else sequential, with a warning that says why."""
    self_test_seconds: float = Field(60.0, ge=0)
    """How long the start-up self-test may take over sequences past the windows, chunks and rope thresholds of the
    model's config, in seconds; those that would take longer are left out, and named in a warning."""
    max_model_len: int | None = Field(None, ge=4)
    """Longest prompt + response, in tokens. Default: what the model's own config says."""
    rows_per_head_chunk: int = Field(256, ge=1)
    """Response rows whose logits exist at once: memory is this times the vocabulary, times 4 bytes (12 on a GPU)."""
    max_batch_bytes: int | None = Field(None, ge=1)
    """Memory that a forward may take beside the model, and as much again what is kept of groups that are computed in
    slices, in bytes, by an estimate. What would take more is computed in several forwards, or refused before it
    starts. Default: two fifths of what is free on the device once the model is loaded."""
    trust_remote_code: bool = False
    """Run Python code that comes with the model. Only for models whose code you have read."""
    weights_folder: DirectoryPath | None = None
    """Folder of which UpdateWeights takes new weights and adapters, while the server serves. Default: none, and
    UpdateWeights is off: there are no keys, so whoever reaches the server could choose among what lies there."""
    fake_vocabulary_size: int = Field(256, ge=2)
    """Vocabulary of the fake engine; raised to its tokenizer's when it has one."""
    fake_seconds_per_token: float = Field(0.0, ge=0)
    """How long the fake engine takes per token, in seconds."""
    fake_dies_after_groups: int | None = Field(None, ge=1)
    """For tests: the fake engine batches by itself, and dies at the group after this many, the start-up self-test's
    among them, as often as it is started."""
    fake_entropies: bool = True
    """Whether the fake engine computes entropies; for tests of teachers that do not."""
    fake_temperature: bool = True
    """Whether the fake engine applies temperatures other than 1; for tests of teachers that do not."""
    fake_candidates: bool = True
    """Whether the fake engine scores ids that the caller names; for tests of teachers that do not."""

    @field_validator("model", "tokenizer")
    @classmethod
    def _expand_home(cls, name: str | None) -> str | None:
        """As the shell does, for names in files; a hub id has no such character."""
        return os.path.expanduser(name) if name else name

    @model_validator(mode="after")
    def _check_model(self) -> Self:
        if self.kind != "fake" and not self.model:
            raise ValueError("model is required: set engine.model to a hub id or a folder")
        return self

    @model_validator(mode="after")
    def _check_fake(self) -> Self:
        defaults = {name: field.default for name, field in type(self).model_fields.items()}
        changed = [name for name in defaults if name.startswith("fake_") and getattr(self, name) != defaults[name]]
        if changed and self.kind != "fake":
            raise ValueError(f"{changed[0]} is for kind=fake, not for {self.kind}: leave engine.{changed[0]} out")
        return self

    @model_validator(mode="after")
    def _check_kind(self) -> Self:
        if self.kind != "vllm":
            if self.vllm != VllmConfig():
                raise ValueError(f"vllm is set, but kind={self.kind}: set engine.kind=vllm, or leave engine.vllm out")
            return self
        for name in ("gguf_file", "device", "packing", "self_test_seconds", "max_batch_bytes"):
            if getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(f"{name}={getattr(self, name)} is not for kind=vllm: leave engine.{name} out")
        return self


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
        for name in ("max_batch_tokens", "batch_window_ms"):
            default = SchedulerConfig.model_fields[name].default
            if self.engine.kind == "vllm" and getattr(self.scheduler, name) != default:
                raise ValueError(
                    f"scheduler.{name} is not for engine.kind=vllm, which makes its own batches: leave it out, and set "
                    "max_num_batched_tokens in engine.vllm.arguments where its batches shall be of another size"
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
    engine: EngineConfig | None = None
    """The model that answers. Required, unless `teachers` names several."""
    scheduler: SchedulerConfig = SchedulerConfig()
    """How requests become batches."""
    limits: LimitsConfig = LimitsConfig()
    """What one request may ask for."""
    teachers: dict[str, TeacherSettings] = Field(default_factory=dict)
    """Several teachers by name, each with an `engine`, and a `scheduler` and `limits` of its own where it needs them:
    [teachers.NAME.engine] in a file. They take the place of `teacher`, `engine`, `scheduler` and `limits`. SIGHUP has
    them read anew."""
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
