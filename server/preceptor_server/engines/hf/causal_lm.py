"""A causal language model as transformers loads it, parted into body and head, and what its config says. Knows nothing
of groups or batches."""

# R = rows, T = tokens of a sequence, F = flat tokens of several, D = hidden size, V = vocabulary size

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
from transformers import PretrainedConfig, PreTrainedModel

from preceptor_server.engines.config import HfConfig
from preceptor_server.engines.hf.masks import UnsupportedAttentionError
from preceptor_server.engines.hf.memory import ModelShape, shape_of
from preceptor_server.engines.hf.parting import PartedModel, UnknownHeadError
from preceptor_server.engines.hf.rope import LengthDependentRope
from preceptor_server.engines.hf.saved_weights import Tensors, computed_config, read_weights, tied_names
from preceptor_server.engines.hf.thresholds import thresholds_of
from preceptor_server.errors import StartupError, said


class LoadedModel:
    """Body and head of one model, to be called separately."""

    def __init__(self, model: PreTrainedModel, config: HfConfig) -> None:
        self._model = model
        self._config = config
        self._parted = _part(model, config)
        self._arguments = inspect.signature(type(model).forward).parameters
        self.rope = LengthDependentRope(model)
        self.device: torch.device = model.device
        self.name = config.model if not Path(config.model).is_dir() else Path(config.model).name
        self.vocabulary_size = self._parted.vocabulary_size
        self.max_model_len = _max_model_len(model, config)
        self.shape: ModelShape = shape_of(
            model.config,
            vocabulary=self.vocabulary_size,
            dtype=model.dtype,
            head_dtype=torch.float32 if config.head_dtype == "float32" else model.dtype,
            device=model.device,
        )
        self.thresholds = thresholds_of(model.config, rope=self.rope)
        self.end_token_ids = _end_token_ids(model)
        self.revision = _revision_of(model, config)
        self.generation = 0
        """Counts the changes of the weights. Read where they are changed, in the engine's thread."""

    def hidden_states(self, token_ids_T: torch.Tensor) -> torch.Tensor:
        """Of one sequence, what the output embedding reads at every token, [T, D]."""
        self.rope.reset()
        return self._parted.hidden_states(token_ids_T.to(self.device))

    def packed_hidden_states(self, token_ids_F: torch.Tensor, positions_F: torch.Tensor) -> torch.Tensor:
        """Of the flat tokens of several sequences, [F, D]. Raises UnsupportedAttentionError."""
        hands_on = any(one.kind is inspect.Parameter.VAR_KEYWORD for one in self._arguments.values())
        if "position_ids" not in self._arguments and not hands_on:
            raise UnsupportedAttentionError("its forward takes no position_ids")
        self.rope.reset()
        arguments = {"position_ids": positions_F[None].to(self.device)}
        if "attention_mask" in self._arguments:
            # Without it transformers would take positions that start again for another kind of packing.
            arguments["attention_mask"] = torch.ones_like(arguments["position_ids"])
        return self._parted.hidden_states(token_ids_F.to(self.device), **arguments)

    def logits(self, hidden_RD: torch.Tensor) -> torch.Tensor:
        """The head, with whatever scaling or soft-capping the architecture puts after it, [R, V]."""
        return self._parted.logits(hidden_RD)

    def plain_logits(self, token_ids_T: torch.Tensor, *, first_row: int) -> torch.Tensor:
        """The whole model as transformers runs it, head included and nothing of ours between, without the first rows,
        [T - first_row, V]."""
        self.rope.reset()
        num_rows = len(token_ids_T) - first_row
        # Where the model can leave out the head's first rows it does: a long sequence's logits may not fit memory.
        limits = {"logits_to_keep": num_rows} if "logits_to_keep" in self._arguments else {}
        output = self._model(input_ids=token_ids_T[None].to(self.device), use_cache=False, **limits)
        logits: torch.Tensor = output.logits[0, -num_rows:]
        return logits

    def use_attention(self, implementation: str) -> None:
        """For the text's layers. Raises UnsupportedAttentionError where the architecture computes it by itself."""
        config = self._model.config
        text = config.get_text_config()
        parts = [name for name in config.sub_configs if getattr(config, name, None) is text]
        try:
            self._model.set_attn_implementation({"": implementation, **dict.fromkeys(parts, implementation)})
        except ValueError as error:
            raise UnsupportedAttentionError(str(error)) from error
        # transformers only warns of a model that computes attention by itself.
        if text._attn_implementation != implementation:
            raise UnsupportedAttentionError("it computes attention by itself")

    @property
    def attention_implementation(self) -> str:
        """The name of what the text's layers use."""
        name: str = self._model.config.get_text_config()._attn_implementation
        return name

    def load_weights(self, folder: Path) -> Tensors:
        """Takes over the weights in `folder`; returns the ones before, on the CPU, for `put_weights`. Raises
        WeightUpdateError where they do not fit; whatever is raised, the weights before are in their places."""
        new = read_weights(self._model, folder)
        before = {name: tensor.to("cpu", copy=True) for name, tensor in self._model.state_dict().items()}
        try:
            self.put_weights(new)
        except BaseException:
            self.put_weights(before)
            raise
        return before

    @torch.no_grad()
    def put_weights(self, tensors: Tensors) -> None:
        """Copies every tensor into its place: a model that was read lies in files, and files may change."""
        self.generation += 1  # first: what fails half way has changed weights too
        for name, tensor in self._model.state_dict().items():
            tensor.copy_(tensors[name])
        self._parted.take_over_weights()
        self.revision = _revision_of(self._model, self._config)

    @contextmanager
    def attention(self, implementation: str) -> Iterator[None]:
        """Another attention implementation inside this block, where the architecture takes one."""
        before = self.attention_implementation
        with suppress(UnsupportedAttentionError):
            self.use_attention(implementation)
        try:
            yield
        finally:
            self.use_attention(before)


def _part(model: PreTrainedModel, config: HfConfig) -> PartedModel:
    dtype = torch.float32 if config.head_dtype == "float32" else model.dtype
    try:
        return PartedModel(model, head_dtype=dtype)
    except UnknownHeadError as error:
        raise StartupError(f"engine.model: {error}") from error
    except Exception as error:  # an architecture's own code
        name = type(model).__name__
        raise StartupError(f"engine.model: {name} cannot read a single token: {said(error)}") from error


def _max_model_len(model: PreTrainedModel, config: HfConfig) -> int:
    longest = _longest_context(model.config.get_text_config())
    if config.max_model_len is None and longest is None:
        raise StartupError("engine.max_model_len: the model's config does not say how long its context is: set it")
    if config.max_model_len is not None and longest is not None and config.max_model_len > longest:
        raise StartupError(f"engine.max_model_len={config.max_model_len} is beyond the model's own {longest}: lower it")
    return config.max_model_len or longest or 0


def _longest_context(config: PretrainedConfig) -> int | None:
    """Tokens; None where the config does not say. A dynamic rope stretches its positions by a factor."""
    longest: int | None = getattr(config, "max_position_embeddings", None)
    rope = getattr(config, "rope_parameters", None) or {}
    if longest is not None and rope.get("rope_type") == "dynamic":
        return int(longest * rope.get("factor", 1.0))
    return longest


def _end_token_ids(model: PreTrainedModel) -> tuple[int, ...]:
    generation = model.generation_config
    ids = generation.eos_token_id if generation is not None else None
    if ids is None:
        ids = getattr(model.config.get_text_config(), "eos_token_id", None)
    if ids is None:
        return ()
    return tuple(sorted(ids)) if isinstance(ids, list) else (ids,)


def _revision_of(model: PreTrainedModel, config: HfConfig) -> str:
    """First 16 hex digits of a SHA-256 over all saved weights and buffers, the model's config, and the precision they
    are used in."""
    digest = hashlib.sha256(f"{type(model).__name__} {config.dtype} head={config.head_dtype}".encode())
    digest.update(json.dumps(computed_config(model), sort_keys=True, default=str).encode())
    tied = tied_names(model)
    for name, weight in sorted(model.state_dict().items()):
        if name in tied:
            continue  # hashed under its first name
        digest.update(name.encode())
        digest.update(weight.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]
