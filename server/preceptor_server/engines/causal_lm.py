"""A causal language model taken apart: backbone, head, and what its config says. Knows nothing of groups or batches."""

# R = rows, T = tokens, D = hidden size, V = vocabulary size

from __future__ import annotations

import copy
import hashlib
import json
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.modeling_outputs import MoeModelOutputWithPast

from preceptor_server.config import EngineConfig
from preceptor_server.engines.saved_weights import Tensors, computed_config, read_weights
from preceptor_server.errors import StartupError

logger = logging.getLogger(__name__)


@dataclass
class _BackboneOutput(MoeModelOutputWithPast):
    """Every field that some architecture's head reads: routing of experts, cross attention (GPT-2)."""

    cross_attentions: tuple[torch.Tensor, ...] | None = None


class _GivenHidden(torch.nn.Module):
    """Stands in for a backbone: its last hidden state is what it is given."""

    def forward(self, *_: object, inputs_embeds: torch.Tensor, **__: object) -> _BackboneOutput:
        return _BackboneOutput(last_hidden_state=inputs_embeds)


class LoadedModel:
    """Backbone and head of one model, to be called separately."""

    def __init__(self, model: PreTrainedModel, config: EngineConfig) -> None:
        self._model = model
        self._config = config
        self._backbone = getattr(model, model.base_model_prefix)
        self._head_dtype = torch.float32 if config.head_dtype == "float32" else model.dtype
        self._head = _head_of(model, self._head_dtype)
        self.device: torch.device = model.device
        self.name = config.model if not Path(config.model).is_dir() else Path(config.model).name
        self.vocabulary_size: int = model.get_output_embeddings().weight.shape[0]
        self.max_model_len = _max_model_len(model, config)
        self.end_token_ids = _end_token_ids(model)
        self.revision = _revision_of(model, config)

    def hidden_states(self, token_ids: torch.Tensor, *, positions: torch.Tensor | None = None) -> torch.Tensor:
        """Last hidden states, [1, T, D]."""
        positions = None if positions is None else positions.to(self.device)
        output = self._backbone(input_ids=token_ids.to(self.device), position_ids=positions, use_cache=False)
        hidden: torch.Tensor = output.last_hidden_state
        return hidden

    def logits(self, hidden_RD: torch.Tensor) -> torch.Tensor:
        """The head, with whatever scaling or soft-capping the architecture puts after it, [R, V]."""
        logits: torch.Tensor = self._head(inputs_embeds=hidden_RD.to(self._head_dtype)[None], use_cache=False).logits
        return logits[0]

    def plain_logits(self, token_ids: torch.Tensor) -> torch.Tensor:
        """The whole model as transformers runs it, head included and nothing of ours between, [1, T, V]."""
        logits: torch.Tensor = self._model(input_ids=token_ids.to(self.device), use_cache=False).logits
        return logits

    def use_attention(self, implementation: str) -> None:
        try:
            self._model.set_attn_implementation(implementation)
        except ValueError as error:
            raise StartupError(
                f"engine.packing='packed' does not fit {type(self._model).__name__} ({error}): "
                "set engine.packing='sequential'"
            ) from error

    def load_weights(self, folder: Path) -> Tensors:
        """Takes over the weights in `folder`; returns the ones before, on the CPU, for `put_weights`. Raises
        WeightUpdateError, and changes nothing, where they do not fit."""
        new = read_weights(self._model, folder)
        before = {name: tensor.to("cpu", copy=True) for name, tensor in self._model.state_dict().items()}
        self.put_weights(new)
        return before

    @torch.no_grad()
    def put_weights(self, tensors: Tensors) -> None:
        """Copies every tensor into its place: a model that was read lies in files, and files may change."""
        for name, tensor in self._model.state_dict().items():
            tensor.copy_(tensors[name])
        self._head = _head_of(self._model, self._head_dtype)  # it may hold a copy, in another precision
        self.revision = _revision_of(self._model, self._config)

    @contextmanager
    def attention(self, implementation: str) -> Iterator[None]:
        """Another attention implementation inside this block."""
        before = self._model.config._attn_implementation
        self._model.set_attn_implementation(implementation)
        try:
            yield
        finally:
            self._model.set_attn_implementation(before)


def load_model(config: EngineConfig) -> LoadedModel:
    """Loads the model that `config` names. Raises StartupError where it does not exist or does not fit."""
    started = time.perf_counter()
    device = _device(config)
    if _looks_like_path(config.model) and not Path(config.model).is_dir():
        raise StartupError(f"engine.model: folder {config.model} does not exist")
    if config.gguf_file and not (Path(config.model) / config.gguf_file).is_file():
        raise StartupError(f"engine.gguf_file: {config.model} holds no file {config.gguf_file}")
    try:
        model = AutoModelForCausalLM.from_pretrained(
            config.model,
            gguf_file=config.gguf_file,
            dtype=getattr(torch, config.dtype),
            trust_remote_code=config.trust_remote_code,
        )
    except (OSError, ValueError) as error:
        raise StartupError(f"engine.model: {config.model} cannot be loaded: {error}") from error
    torch.nn.Module.to(model, device)  # transformers' own `to` has no usable type
    loaded = LoadedModel(model.eval().requires_grad_(False), config)
    logger.info(
        "model loaded model=%s revision=%s dtype=%s device=%s seconds=%.1f",
        loaded.name, loaded.revision, config.dtype, device, time.perf_counter() - started,
    )  # fmt: skip
    return loaded


def _head_of(model: PreTrainedModel, dtype: torch.dtype) -> PreTrainedModel:
    """A shallow copy of `model` whose backbone hands on what it is given, and whose head computes in `dtype`.

    Running the model's own forward keeps every architecture's scaling and soft-capping of logits, with no list of them.
    """
    head = copy.copy(model)
    head._modules = dict(model._modules)
    setattr(head, model.base_model_prefix, _GivenHidden())
    output = model.get_output_embeddings()
    if output.weight.dtype != dtype:
        head.set_output_embeddings(copy.deepcopy(output).to(dtype))
    return head


def _device(config: EngineConfig) -> torch.device:
    has_cuda = torch.cuda.is_available()
    if config.device == "cuda" and not has_cuda:
        raise StartupError("engine.device=cuda, but torch finds no CUDA device: set engine.device=cpu")
    return torch.device("cuda" if has_cuda and config.device != "cpu" else "cpu")


def _looks_like_path(model: str) -> bool:
    return model.startswith((".", "/", "~")) or model.count("/") > 1


def _max_model_len(model: PreTrainedModel, config: EngineConfig) -> int:
    text_config = model.config.get_text_config()
    longest: int | None = getattr(text_config, "max_position_embeddings", None)
    if config.max_model_len is None and longest is None:
        raise StartupError("engine.max_model_len: the model's config does not say how long its context is: set it")
    if config.max_model_len is not None and longest is not None and config.max_model_len > longest:
        raise StartupError(f"engine.max_model_len={config.max_model_len} is beyond the model's own {longest}: lower it")
    return config.max_model_len or longest or 0


def _end_token_ids(model: PreTrainedModel) -> tuple[int, ...]:
    generation = model.generation_config
    ids = generation.eos_token_id if generation is not None else None
    if ids is None:
        ids = model.config.get_text_config().eos_token_id
    if ids is None:
        return ()
    return tuple(sorted(ids)) if isinstance(ids, list) else (ids,)


def _revision_of(model: PreTrainedModel, config: EngineConfig) -> str:
    """First 16 hex digits of a SHA-256 over all weights, the model's config, and the precision they are used in."""
    digest = hashlib.sha256(f"{type(model).__name__} {config.dtype} head={config.head_dtype}".encode())
    digest.update(json.dumps(computed_config(model), sort_keys=True, default=str).encode())
    for name, weight in sorted(model.named_parameters()):
        digest.update(name.encode())
        digest.update(weight.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]
