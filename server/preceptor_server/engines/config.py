"""The settings of each engine, and the choice among them by `kind`. Imports no torch."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from preceptor.settings import Section
from pydantic import DirectoryPath, Discriminator, Field, JsonValue, Tag, field_validator, model_validator


class _Hosted(Section):
    """What the server itself does beside every engine."""

    kind: str
    """package.module:Name of the class."""
    tokenizer: str | None = None
    """Hub id or folder of the tokenizer. Default: the model's; an engine of your own has none by default."""
    trust_remote_code: bool = False
    """Run Python code that comes with the model or the tokenizer. Only where you have read it."""
    weights_folder: DirectoryPath | None = None
    """Folder of which UpdateWeights takes new weights and adapters, while the server serves. Default: none, and
    UpdateWeights is off. A caller also needs the right update_weights."""

    @field_validator("model", "tokenizer", check_fields=False)
    @classmethod
    def _expand_home(cls, name: str | None) -> str | None:
        """As the shell does, for names in files; a hub id has no such character."""
        return os.path.expanduser(name) if name else name


class _Pretrained(_Hosted):
    """A model that comes as a checkpoint."""

    model: str
    """Hub id or folder of the model. Required."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision of the weights and of the forward."""
    head_dtype: Literal["float32", "model"] = "float32"
    """Precision of the output head. In bfloat16 a logit near 20 is off by up to 0.06 nats and near ties swap."""
    max_model_len: int | None = Field(None, ge=4)
    """Longest prompt + response, in tokens. Default: what the model's own config says."""
    rows_per_head_chunk: int = Field(256, ge=1)
    """Response rows whose logits exist at once: memory is this times the vocabulary, times 4 bytes (12 on a GPU)."""

    @model_validator(mode="before")
    @classmethod
    def _has_a_model(cls, given: Any) -> Any:  # Any: whatever the settings hold
        if isinstance(given, Mapping) and not given.get("model"):
            raise ValueError("model is required: set engine.model to a hub id or a folder")
        return given


class HfConfig(_Pretrained):
    """A causal language model run by transformers, on CPU or on one GPU."""

    kind: str = Field("hf", pattern="^hf$")  # no Literal: --help would show it as the only choice
    """hf: a causal language model run by transformers. vllm: large models, many GPUs. package.module:Name: an engine of
    your own, a class with the methods of preceptor_server.engines.base.Engine."""
    gguf_file: str | None = None
    """kind=hf: name of a GGUF file inside the model's folder, when the weights come as one."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the model runs; auto takes CUDA when there is one. Only kind=hf."""
    packing: Literal["auto", "packed", "sequential"] = "auto"
    """kind=hf. packed: all groups of a batch in one forward, shared prefixes once. sequential: one forward per
    response, for architectures that packing does not fit (state-space layers, attention of their own). auto: packed
    where the start-up self-test finds it right, else sequential, with a warning that says why."""
    self_test_seconds: float = Field(60.0, ge=0)
    """How long the start-up self-test may take over sequences past the windows, chunks and rope thresholds of the
    model's config, in seconds; those that would take longer are left out, and named in a warning. Not for vllm."""
    max_batch_bytes: int | None = Field(None, ge=1)
    """kind=hf: memory that a forward may take beside the model, and as much again what is kept of groups that are
    computed in slices, in bytes, by an estimate. What would take more is computed in several forwards, or refused
    before it starts. Default: two fifths of what is free on the device once the model is loaded."""


class VllmConfig(_Pretrained):
    """A large model run by vLLM, over many GPUs where it needs them."""

    kind: Literal["vllm"] = "vllm"
    """vLLM."""
    path: Literal["auto", "fast", "stock"] = "auto"
    """kind=vllm. fast: columns are computed inside vLLM's workers, of response rows only, prompts come from its cache,
    every temperature and candidate works; needs a model that vLLM implements. stock: vLLM's own prompt logprobs, on any
    version: temperature 1, no candidates, no entropies, slower. auto: fast where it works, else stock, with a warning
    that says why."""
    arguments: dict[str, Any] = Field(default_factory=dict)
    """kind=vllm: vLLM's engine arguments by their own names, such as {"tensor_parallel_size": 4, "enable_lora": true,
    "gpu_memory_utilization": 0.9, "distributed_executor_backend": "ray"}."""
    max_tokens_in_flight: int | None = Field(None, ge=1)
    """kind=vllm: tokens handed to vLLM at once; the rest waits here, where callers share fairly. Default: four of its
    batches."""
    self_test_seconds: ClassVar[float] = 0.0
    """vLLM tells the server no thresholds past which to test."""


class OwnEngineConfig(_Hosted):
    """An engine of the user's own."""

    options: dict[str, JsonValue] = Field(default_factory=dict)
    """kind=package.module:Name: the keyword arguments of your class."""
    max_model_len: int | None = Field(None, ge=4)
    """Longest prompt + response, in tokens. Default: what the engine says."""
    self_test_seconds: float = Field(60.0, ge=0)
    """How long the start-up self-test may take over sequences past the thresholds that the engine names."""

    @model_validator(mode="before")
    @classmethod
    def _names_a_class(cls, given: Any) -> Any:  # Any: whatever the settings hold
        kind = given.get("kind") if isinstance(given, Mapping) else None
        if kind is not None and not (isinstance(kind, str) and ":" in kind):
            raise ValueError(
                f"engine.kind={kind!r} is not an engine: write hf, vllm, or package.module:Name of your class"
            )
        return given


_HF, _VLLM, _OWN = "kind=hf", "kind=vllm", "kind=package.module:Name"
"""Names of the three, for messages."""


def _tag_of(given: Any) -> str:  # Any: a table of settings, or settings
    kind = given.get("kind", "hf") if isinstance(given, Mapping) else getattr(given, "kind", None)
    return _HF if kind == "hf" else _VLLM if kind == "vllm" else _OWN


EngineConfig = Annotated[
    Annotated[HfConfig, Tag(_HF)] | Annotated[VllmConfig, Tag(_VLLM)] | Annotated[OwnEngineConfig, Tag(_OWN)],
    Discriminator(_tag_of),
]
"""The settings of one engine: those that its `kind` honours, and no others; hf where `kind` is missing."""

SETTINGS_BY_KIND = "Settings of " + "; of ".join(
    f"{name}: {', '.join(field for field in engine.model_fields if field != 'kind')}"
    for name, engine in ((_HF, HfConfig), (_VLLM, VllmConfig), (_OWN, OwnEngineConfig))
)
"""For the help of the command line, which lists the settings of all three together."""
