"""What a forward takes, estimated from the model's config before it starts, and what there is. Knows no batches.

An estimate is meant to be above what the forward takes, and below three times that
(tests/unit/server/engines/test_memory.py measures it).
"""

# F = flat tokens of a forward, N = scored rows, R = rows of a head chunk, V = vocabulary, D = hidden size,
# L = longest sequence, K = support size, E = candidates of all rows

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PretrainedConfig

from preceptor_server.context_costs import FLAT, ContextCosts
from preceptor_server.engines.columns import CPU_BLOCK_ROWS
from preceptor_server.engines.hf.masks import MAX_KEPT_BYTES, TILE_ROWS

_SHARE_OF_FREE = 0.4
"""Of what is free: once for a forward, and once more for what is kept between the slices of groups."""
_BLOCK_BUFFERS = 6
"""Buffers of a block of rows times the vocabulary, in fp32, while its columns are computed."""
_CGROUP = Path("/sys/fs/cgroup")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShape:
    """Sizes of a model that say what its forward takes; numbers per token unless they say otherwise."""

    num_layers: int
    num_unbounded_layers: int
    """Whose attention sees the whole context, rather than a window or a state."""
    hidden: int
    intermediate: int
    """Of the feed-forward, of all experts that a token goes through."""
    chosen_intermediate: int
    """The same, without the copies of what the experts read."""
    num_heads: int
    query: int
    """Of all heads."""
    key_value: int
    """Keys and values of all their heads, of one layer."""
    num_router_logits: int
    vocabulary: int
    dtype_bytes: int
    head_bytes: int
    attends_densely: bool
    """Soft-caps its scores or has sinks, so that scores exist as a whole for TILE_ROWS queries."""
    has_windows: bool
    is_on_cpu: bool

    @property
    def context_costs(self) -> ContextCosts:
        """From multiplications: L (2 D Q + D KV + 3 D I) of a token without its context, and 2 Q more for each token of
        context in each of the unbounded layers."""
        per_context_token = 2 * self.num_unbounded_layers * self.query
        if not per_context_token:
            return FLAT
        per_layer = self.hidden * (2 * self.query + self.key_value + 3 * self.chosen_intermediate)
        return ContextCosts(horizon=self.num_layers * per_layer / per_context_token)

    @property
    def kept_bytes_per_token(self) -> int:
        """Of keys and values of all layers."""
        return self.num_layers * self.key_value * self.dtype_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class ForwardSize:
    """Of one forward and the head on its rows."""

    num_tokens: int
    longest: int
    """Tokens of the longest sequence, what comes from earlier forwards included."""
    num_rows: int
    is_packed: bool = True
    """Else one sequence, by transformers' own attention."""
    is_eager: bool = False


def body_bytes(shape: ModelShape, size: ForwardSize) -> int:
    """Bytes that the body takes at its peak, in one of its layers:

        F * (s * (3 D + max(5 Q + 3 KV, 3.5 I)) + 12 D + 16 M + 48)      activations; s bytes each, norms in fp32
        + N * D * s                                                    the rows that are scored
        + s * KV * L                                                   keys and values gathered for one segment
        + min(64 MiB, s * (F + L) * L) + TILE * L * (s + 12)           masks: tiles kept for other layers, and one made
        + H * TILE * L * 16                                            scores in fp32, where attention is dense

    Q are the queries of all heads, KV the keys and values, I the feed-forward of a token's experts, M the router's
    logits. A forward that is not packed has no tiles: a mask of L * L numbers where the model has windows, scores of
    H * L * L where its attention is eager.
    """
    width = 3 * shape.hidden + max(5 * shape.query + 3 * shape.key_value, int(3.5 * shape.intermediate))
    per_token = shape.dtype_bytes * width + 12 * shape.hidden + 16 * shape.num_router_logits + 48
    activations = size.num_tokens * per_token + size.num_rows * shape.hidden * shape.dtype_bytes
    gathered = shape.dtype_bytes * shape.key_value * size.longest
    return activations + gathered + _attention_bytes(shape, size)


def _attention_bytes(shape: ModelShape, size: ForwardSize) -> int:
    longest, heads = size.longest, shape.num_heads
    if not size.is_packed:
        masks = longest * longest * (1 + shape.dtype_bytes) if shape.has_windows or size.is_eager else 0
        return masks + (heads * longest * longest * 12 if size.is_eager else 0)
    tiles = min(MAX_KEPT_BYTES, shape.dtype_bytes * (size.num_tokens + longest) * longest)
    made = TILE_ROWS * longest * (shape.dtype_bytes + 12)
    scores = heads * TILE_ROWS * longest * 16 if shape.attends_densely else 0
    return tiles + made + scores


def head_bytes(shape: ModelShape, *, rows_per_chunk: int, top_k: int, num_candidates: int = 0) -> int:
    """Bytes of the head and of the columns of one chunk of rows, on the device:

        R * V * 2 h + B * V * 24 + R * (32 * 24 K + 36 C)

    h bytes of a logit and of what scales it; B rows whose columns are computed at once, 32 on a CPU and R elsewhere, in
    six fp32 buffers; the K tiles of 32 in which the support is looked for, as keys of 8 bytes; C candidates of a row,
    as rows and ids of 8 bytes.
    """
    block = min(rows_per_chunk, CPU_BLOCK_ROWS) if shape.is_on_cpu else rows_per_chunk
    logits = rows_per_chunk * shape.vocabulary * 2 * shape.head_bytes
    columns = block * shape.vocabulary * 4 * _BLOCK_BUFFERS + rows_per_chunk * 24 * top_k
    return logits + columns + min(block * 32 * 24 * top_k, block * shape.vocabulary * 24) + 36 * num_candidates


def column_bytes(*, num_rows: int, top_k: int, num_candidates: int) -> int:
    """Bytes of an answer: N * (12 K + 13 + 8) + 4 E; ids of 8 bytes, the rest of 4, a flag and what was sampled."""
    return num_rows * (12 * top_k + 21) + 4 * num_candidates


def shape_of(
    config: PretrainedConfig, *, vocabulary: int, dtype: torch.dtype, head_dtype: torch.dtype, device: torch.device
) -> ModelShape:
    """What the config does not say is taken as most models have it."""
    text = config.get_text_config()
    hidden = _number(text, "hidden_size", "d_model", "n_embd") or 1024
    heads = _number(text, "num_attention_heads", "n_head") or max(1, hidden // 64)
    query, key_value = _attention_widths(text, hidden=hidden, num_heads=heads)
    experts = _number(text, "num_local_experts", "num_experts", "n_routed_experts")
    num_layers = _number(text, "num_hidden_layers", "n_layer") or 32
    return ModelShape(
        num_layers=num_layers,
        num_unbounded_layers=_num_unbounded_layers(text, num_layers),
        hidden=hidden,
        intermediate=_intermediate(text, hidden=hidden, has_experts=bool(experts), copied=hidden),
        chosen_intermediate=_intermediate(text, hidden=hidden, has_experts=bool(experts), copied=0),
        num_heads=heads,
        query=query,
        key_value=key_value,
        num_router_logits=experts,
        vocabulary=vocabulary,
        dtype_bytes=dtype.itemsize,
        head_bytes=head_dtype.itemsize,
        attends_densely=bool(getattr(text, "attn_logit_softcapping", None)) or text.model_type == "gpt_oss",
        has_windows=_has_windows(text),
        is_on_cpu=device.type == "cpu",
    )


def _has_windows(text: PretrainedConfig) -> bool:
    return bool(_number(text, "sliding_window", "attention_chunk_size", "window_size"))


def _num_unbounded_layers(text: PretrainedConfig, num_layers: int) -> int:
    """Where the config does not say it layer by layer, all layers are alike."""
    kinds = getattr(text, "layer_types", None) or getattr(text, "layers_block_type", None)
    if isinstance(kinds, list | tuple):
        return sum(_sees_all(str(kind)) for kind in kinds)
    if not _number(text, "num_attention_heads", "n_head"):
        return 0
    is_windowed = _has_windows(text) and getattr(text, "use_sliding_window", True) is not False
    return 0 if is_windowed else num_layers


def _sees_all(kind: str) -> bool:
    """As configs name kinds of layers: full_attention, attention, hybrid; not sliding_attention, linear_attention or
    mamba."""
    is_bounded = any(word in kind for word in ("sliding", "chunked", "local", "linear"))
    return not is_bounded and any(word in kind for word in ("attention", "hybrid"))


def _attention_widths(text: PretrainedConfig, *, hidden: int, num_heads: int) -> tuple[int, int]:
    """Numbers of the queries of all heads, and of all keys and values, of one token and layer."""
    latent = _number(text, "qk_nope_head_dim")
    if latent:
        head, value_head, key_heads = latent + _number(text, "qk_rope_head_dim"), _number(text, "v_head_dim"), num_heads
    else:
        head = value_head = _number(text, "head_dim") or hidden // num_heads
        key_heads = _number(text, "num_key_value_heads") or num_heads
    return num_heads * head, key_heads * (head + (value_head or head))


def _intermediate(text: PretrainedConfig, *, hidden: int, has_experts: bool, copied: int) -> int:
    """`copied`: numbers of a token that are copied for each of its experts, beside its feed-forward."""
    dense = _number(text, "intermediate_size", "ffn_dim", "n_inner") or 4 * hidden
    if not has_experts:
        return dense
    chosen = _number(text, "num_experts_per_tok", "experts_per_token", "moe_topk") or 1
    expert = _number(text, "moe_intermediate_size") or dense
    routed = chosen * (expert + copied)
    return (max(dense, routed) if copied else routed) + _number(text, "shared_expert_intermediate_size")


def _number(config: Any, *names: str) -> int:  # Any: configs of architectures, each with fields of its own
    """The first of these settings that the config has, as a number; the largest where it is one for each layer."""
    for name in names:
        numbers = [one for one in _values(config, name) if isinstance(one, int) and not isinstance(one, bool)]
        if numbers:
            return max(numbers)
    return 0


def _values(config: Any, name: str) -> Sequence[object]:  # Any: as above
    """Of one setting: one, or one for each layer, in either of the two ways in which configs say that."""
    if getattr(config, "is_heterogeneous", False) and name in (config.per_layer_attributes or ()):
        return [getattr(layer, name, None) for layer in config.per_layer_config]
    value = getattr(config, name, None)
    return value if isinstance(value, list | tuple) else [value]


def default_max_bytes(device: torch.device) -> int:
    """Two fifths of what is free on the device, the model being loaded."""
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else _free_host_bytes()
    return max(1, int(free * _SHARE_OF_FREE))


def _free_host_bytes() -> int:
    """Of the machine, or of the container where that has less."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    try:
        limit = int((_CGROUP / "memory.max").read_text())
        return max(0, min(free, limit - int((_CGROUP / "memory.current").read_text())))
    except (OSError, ValueError):  # no cgroup of version 2, or no limit: "max"
        return free
