"""Attention over a packed batch, as an attention function that transformers' own models call.

Everything but attention works on flat tokens as it is; here each segment attends to its ancestors and to itself. Knows
nothing of what the tokens mean or where they came from.
"""

# F = flat tokens, L = tokens of a segment, A = tokens of its ancestors, D = head size
# H = query heads, G = key/value heads

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

import torch
import torch.nn.functional as F
from transformers import AttentionInterface

from preceptor_server.engines.packing import Segment

IMPLEMENTATION = "preceptor_packed"
"""The name to give to `model.set_attn_implementation`."""

_segments: ContextVar[Sequence[Segment]] = ContextVar("segments")
_MASK_CACHE_SIZE = 256


class UnsupportedAttentionError(ValueError):
    """The model's attention needs something that this function does not do."""


@contextmanager
def attending_within(segments: Sequence[Segment]) -> Iterator[None]:
    """Inside this block, models whose implementation is IMPLEMENTATION attend along `segments`."""
    token = _segments.set(segments)
    try:
        yield
    finally:
        _segments.reset(token)


def packed_attention(
    module: torch.nn.Module,
    query: torch.Tensor,  # [1, H, F, D]
    key: torch.Tensor,  # [1, G, F, D]
    value: torch.Tensor,  # [1, G, F, D]
    attention_mask: torch.Tensor | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    **_: object,
) -> tuple[torch.Tensor, None]:
    """One layer's attention, [1, F, H, D]; the rows of each segment see its ancestors and, causally, itself."""
    if s_aux is not None or dropout or not getattr(module, "is_causal", True):
        raise UnsupportedAttentionError(
            "this model's attention has sinks, dropout or no causal mask: set engine.packing = 'sequential'"
        )
    assert attention_mask is None, "transformers builds no mask for an attention function of our own"
    output = query.new_empty(1, query.shape[2], query.shape[1], value.shape[3])
    for segment in _segments.get():
        own = slice(segment.span.start, segment.span.stop)
        keys, values = _gather(key, segment), _gather(value, segment)
        attended = _attend(query[:, :, own], keys, values, scaling=scaling, window=sliding_window, softcap=softcap)
        output[:, own] = attended.transpose(1, 2)
    return output, None


AttentionInterface.register(IMPLEMENTATION, packed_attention)


def _gather(states: torch.Tensor, segment: Segment) -> torch.Tensor:
    """Keys or values of the ancestors and of the segment itself, [1, G, A + L, D]; a view where they are adjacent."""
    spans = [*segment.ancestors, segment.span]
    if all(a.stop == b.start for a, b in itertools.pairwise(spans)):
        return states[:, :, spans[0].start : spans[-1].stop]
    return torch.cat([states[:, :, span.start : span.stop] for span in spans], dim=2)


def _attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *,
    scaling: float | None,
    window: int | None,
    softcap: float | None,
) -> torch.Tensor:
    """[1, H, L, D]. The query heads of one key/value head are stacked as rows, so that no key is copied."""
    _, num_heads, num_queries, head_size = query.shape
    num_key_heads, num_keys = key.shape[1], key.shape[2]
    has_plain_mask = num_queries == num_keys and (window is None or num_keys <= window)
    if has_plain_mask and softcap is None:
        grouped = num_heads != num_key_heads
        return F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=scaling, enable_gqa=grouped)
    rows_per_key_head = num_heads // num_key_heads
    stacked = query.reshape(1, num_key_heads, rows_per_key_head * num_queries, head_size)
    mask = _mask(num_queries, num_keys, window, rows_per_key_head, query.dtype, query.device)
    if softcap is None:
        attended = F.scaled_dot_product_attention(stacked, key, value, attn_mask=mask, scale=scaling)
    else:
        attended = _attend_softcapped(stacked, key, value, mask, scaling=scaling, softcap=softcap)
    return attended.reshape(1, num_heads, num_queries, value.shape[3])


def _attend_softcapped(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor,
    *,
    scaling: float | None,
    softcap: float,
) -> torch.Tensor:
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    scores = (query @ key.transpose(-1, -2)) * scale
    scores = torch.tanh(scores / softcap) * softcap + mask
    return scores.softmax(dim=-1, dtype=torch.float32).to(value.dtype) @ value


_masks: dict[tuple[object, ...], torch.Tensor] = {}


def _mask(
    num_queries: int, num_keys: int, window: int | None, repeats: int, dtype: torch.dtype, device: torch.device
) -> torch.Tensor:
    """Additive, [repeats * L, A + L]: the last query sees every key, the ones before it one fewer each."""
    cache_key = (num_queries, num_keys, window, repeats, dtype, device)
    if cache_key not in _masks:
        if len(_masks) >= _MASK_CACHE_SIZE:
            _masks.clear()
        query_position = torch.arange(num_keys - num_queries, num_keys, device=device)[:, None]
        key_position = torch.arange(num_keys, device=device)[None, :]
        is_seen = key_position <= query_position
        if window is not None:
            is_seen &= key_position > query_position - window
        mask = torch.zeros(num_queries, num_keys, dtype=dtype, device=device).masked_fill_(~is_seen, -torch.inf)
        _masks[cache_key] = mask.repeat(repeats, 1)
    return _masks[cache_key]
