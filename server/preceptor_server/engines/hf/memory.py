"""What a forward takes, estimated from the model's config before it starts, and what there is. Knows no batches.

An estimate is meant to be above what the forward takes, and below three times that where activations outweigh masks
(tests/unit/server/engines/test_memory.py measures it on a CPU).
"""

# F = flat tokens of a forward, N = scored rows, R = rows of a head chunk, V = vocabulary, D = hidden size,
# L = longest sequence, K = support size, E = candidates of all rows

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PretrainedConfig

from preceptor_server.context_costs import FLAT, ContextCosts
from preceptor_server.engines.columns import CPU_BLOCK_ROWS
from preceptor_server.engines.hf.layer_widths import (
    feed_forward_width,
    has_unknown_attention,
    has_windows,
    intermediate,
    mixer_bytes,
    mixer_chunk,
    num_experts,
    num_unbounded_layers,
    number,
    side_bytes,
)
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
    feed_forward: int
    """Held while the widest feed-forward is computed, with all experts that a token goes through."""
    intermediate: int
    """Of the feed-forward, of all experts that a token goes through."""
    num_heads: int
    query: int
    """Of all heads."""
    key_value: int
    """Keys and values of all their heads, of one layer."""
    mixer_bytes: int
    """Held in a layer that is a state space or linear attention."""
    mixer_chunk: int
    """Tokens to whose multiple such a layer pads."""
    side_bytes: int
    """Held beside every layer."""
    num_router_logits: int
    vocabulary: int
    dtype_bytes: int
    head_bytes: int
    attends_densely: bool
    """Soft-caps its scores or has sinks, so that scores exist as a whole for TILE_ROWS queries."""
    holds_all_scores: bool
    """Where a forward is not packed, scores of all queries and keys exist at once: no kernel of a CPU takes keys and
    values of unlike sizes, and attention of a kind that is unknown here is taken for the worst."""
    has_windows: bool
    is_on_cpu: bool

    @property
    def context_costs(self) -> ContextCosts:
        """From multiplications: L (2 D Q + D KV + 3 D I) of a token without its context, and 2 Q more for each token of
        context in each of the unbounded layers."""
        per_context_token = 2 * self.num_unbounded_layers * self.query
        if not per_context_token:
            return FLAT
        per_layer = self.hidden * (2 * self.query + self.key_value + 3 * self.intermediate)
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

        F * (3 D s + max(s (5 Q + 3 KV), s W, B) + 12 D + 16 M + 48 + S)    activations; s bytes each, norms in fp32
        + C * B                                                        padding of a mixer
        + N * D * s                                                    the rows that are scored
        + s * KV * L                                                   keys and values gathered for one segment
        + min(64 MiB, s * L * (L + 16)) + T * L * (s + 12)             masks: tiles kept for other layers, and one made
        + H * T * L * (2 s + 8)                                        scores in fp32, where attention is dense

    Q are the queries of all heads, KV the keys and values, W the numbers of the feed-forward, B the bytes of a mixer
    and C its chunk, M the router's logits, S what stands beside the layers, T the rows of a tile. Where the model has
    windows it may have layers without, and tiles of both are kept. A forward that is not packed has no tiles: a mask of
    L * L numbers where the model has windows, scores of H * L * L where its attention is dense.
    """
    s = shape.dtype_bytes
    widest = max(s * (5 * shape.query + 3 * shape.key_value), s * shape.feed_forward, shape.mixer_bytes)
    per_token = (3 * s + 12) * shape.hidden + widest + 16 * shape.num_router_logits + 48 + shape.side_bytes
    activations = size.num_tokens * per_token + shape.mixer_chunk * shape.mixer_bytes
    activations += size.num_rows * shape.hidden * shape.dtype_bytes
    gathered = shape.dtype_bytes * shape.key_value * size.longest
    return activations + gathered + _attention_bytes(shape, size)


def _attention_bytes(shape: ModelShape, size: ForwardSize) -> int:
    longest, heads = size.longest, shape.num_heads
    if not size.is_packed:
        is_dense = size.is_eager or shape.holds_all_scores
        masks = longest * longest * (1 + shape.dtype_bytes) if shape.has_windows or is_dense else 0
        return masks + (heads * longest * longest * 12 if is_dense else 0)
    rows = min(TILE_ROWS, longest)
    tiles = min(MAX_KEPT_BYTES, shape.dtype_bytes * longest * (longest + 16)) * (1 + shape.has_windows)
    made = rows * longest * (shape.dtype_bytes + 12)
    is_dense = shape.attends_densely or shape.holds_all_scores
    scores = heads * rows * longest * (2 * shape.dtype_bytes + 8) if is_dense else 0
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
    hidden = number(text, "hidden_size", "d_model", "n_embd") or 1024
    heads = number(text, "num_attention_heads", "n_head") or max(1, hidden // 64)
    num_layers = number(text, "num_hidden_layers", "n_layer") or 32
    key, value = _head_sizes(text, hidden=hidden, num_heads=heads)
    latent = bool(number(text, "qk_nope_head_dim"))
    key_heads = heads if latent else number(text, "num_key_value_heads") or heads
    return ModelShape(
        num_layers=num_layers,
        num_unbounded_layers=num_unbounded_layers(text, num_layers),
        hidden=hidden,
        feed_forward=feed_forward_width(text, hidden=hidden),
        intermediate=intermediate(text, hidden=hidden),
        num_heads=heads,
        query=heads * key,
        key_value=key_heads * (key + value),
        mixer_bytes=mixer_bytes(text, hidden=hidden, dtype_bytes=dtype.itemsize),
        mixer_chunk=mixer_chunk(text),
        side_bytes=side_bytes(text, hidden=hidden, num_layers=num_layers, dtype_bytes=dtype.itemsize),
        num_router_logits=num_experts(text),
        vocabulary=vocabulary,
        dtype_bytes=dtype.itemsize,
        head_bytes=head_dtype.itemsize,
        attends_densely=bool(getattr(text, "attn_logit_softcapping", None)) or text.model_type == "gpt_oss",
        holds_all_scores=(key != value and device.type == "cpu") or has_unknown_attention(text),
        has_windows=has_windows(text),
        is_on_cpu=device.type == "cpu",
    )


def _head_sizes(text: PretrainedConfig, *, hidden: int, num_heads: int) -> tuple[int, int]:
    """Numbers of one head's key, or query, and of its value."""
    if latent := number(text, "qk_nope_head_dim"):
        key = latent + number(text, "qk_rope_head_dim")
        return key, number(text, "v_head_dim") or key
    # Gemma 4 has larger heads in its layers without a window.
    head = max(number(text, "head_dim"), number(text, "global_head_dim")) or hidden // num_heads
    return head, head


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
