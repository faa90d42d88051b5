"""Attention over a packed batch, as an attention function that transformers' own models call.

Everything but attention works on flat tokens as it is; here each segment attends to its ancestors and to itself, as far
as the model's own mask lets it. Knows nothing of what the tokens mean or where they came from.
"""

# F = flat tokens, L = tokens of a segment, A = tokens of its ancestors, Q = queries of a piece of it, K = their keys
# H = query heads, G = key/value heads, R = H / G, D = head size

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from transformers import AttentionInterface, AttentionMaskInterface

from preceptor_server.engines.hf.kept_states import KeptStates
from preceptor_server.engines.hf.masks import LazyMask, MaskedRows, MaskFunction, UnsupportedAttentionError
from preceptor_server.engines.hf.packing import Segment

IMPLEMENTATION = "preceptor_packed"
"""The name to give to `model.set_attn_implementation`."""


@dataclass(frozen=True, slots=True, eq=False)
class _Forward:
    """One forward over a packed batch."""

    segments: Sequence[Segment]
    kept: KeptStates | None
    own_masks: dict[int | None, LazyMask] = field(default_factory=dict)
    """By window, for models that build no mask."""

    @property
    def num_positions(self) -> int:
        """Of the longest sequence."""
        return max(segment.num_ancestor_tokens + len(segment.span) for segment in self.segments)


_forward: ContextVar[_Forward] = ContextVar("forward")


@contextmanager
def attending_within(segments: Sequence[Segment], *, kept: KeptStates | None = None) -> Iterator[None]:
    """Inside this block, models whose implementation is IMPLEMENTATION attend along `segments`. `kept` holds the keys
    and values of earlier forwards, where segments have any, and takes those that they keep. One forward per block."""
    token = _forward.set(_Forward(segments, kept))
    if kept is not None:
        kept.begin_forward()
    try:
        yield
    finally:
        _forward.reset(token)


def packed_mask(
    *, mask_function: MaskFunction, dtype: torch.dtype, device: torch.device, use_vmap: bool = False, **_: object
) -> LazyMask | None:
    """What transformers passes to the layers as their attention mask. None where the head is run by itself: the model
    asks for a mask then too, and no layer attends."""
    forward = _forward.get(None)
    if forward is None:
        return None
    if use_vmap:
        raise UnsupportedAttentionError("its attention mask is made of a function of its own")
    return LazyMask(mask_function, num_positions=forward.num_positions, dtype=dtype, device=device)


def packed_attention(
    module: torch.nn.Module,
    query: torch.Tensor,  # [1, H, F, D]
    key: torch.Tensor,  # [1, G, F, D]
    value: torch.Tensor,  # [1, G, F, D]
    attention_mask: LazyMask | torch.Tensor | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,  # [H]
    **_: object,
) -> tuple[torch.Tensor, None]:
    """One layer's attention, [1, F, H, D]; the rows of each segment see of its ancestors and of itself what the mask
    says. Without a mask they see what came before them, within the window if there is one."""
    if dropout or not getattr(module, "is_causal", True):
        raise UnsupportedAttentionError("its attention has dropout, or sees tokens that come later")
    if isinstance(attention_mask, torch.Tensor):
        raise UnsupportedAttentionError("its attention mask is made by the model itself")
    mask = _own_mask(query, sliding_window) if attention_mask is None else attention_mask
    output = query.new_empty(1, query.shape[2], query.shape[1], value.shape[3])
    forward = _forward.get()
    layer = None if forward.kept is None else forward.kept.next_layer(key, value)
    # Without a kernel, all scores of a piece exist at once: on a CPU, also where values are not as long as keys.
    has_kernel = softcap is None and s_aux is None and (key.shape[-1] == value.shape[-1] or not key.is_cpu)
    for segment in forward.segments:
        own = slice(segment.span.start, segment.span.stop)
        if layer is not None and segment.is_kept:
            keys, values = layer.keep(key[:, :, own], value[:, :, own], after=segment.num_kept)
        else:
            keys, values = _gather(key, segment), _gather(value, segment)
            if layer is not None and segment.num_kept:
                keys, values = layer.before(keys, values, num_kept=segment.num_kept)
        first = segment.num_ancestor_tokens
        for rows in mask.rows(first, first + len(segment.span), may_be_long=has_kernel):
            queries = slice(own.start + rows.first_query - first, own.start + rows.stop_query - first)
            seen = slice(rows.first_key, rows.stop_key)
            output[:, queries] = _attend(
                query[:, :, queries],
                keys[:, :, seen],
                values[:, :, seen],
                rows,
                scaling=scaling,
                softcap=softcap,
                sinks_H=s_aux,
            ).transpose(1, 2)
    return output, None


AttentionInterface.register(IMPLEMENTATION, packed_attention)
AttentionMaskInterface.register(IMPLEMENTATION, packed_mask)


def _own_mask(query: torch.Tensor, window: int | None) -> LazyMask:
    forward = _forward.get()
    if window not in forward.own_masks:
        forward.own_masks[window] = LazyMask.causal(
            window=window, num_positions=forward.num_positions, dtype=query.dtype, device=query.device
        )
    return forward.own_masks[window]


def _gather(states: torch.Tensor, segment: Segment) -> torch.Tensor:
    """Keys or values of the ancestors and of the segment itself, [1, G, A + L, D]; a view where they are adjacent."""
    spans = [*segment.ancestors, segment.span]
    if all(a.stop == b.start for a, b in itertools.pairwise(spans)):
        return states[:, :, spans[0].start : spans[-1].stop]
    return torch.cat([states[:, :, span.start : span.stop] for span in spans], dim=2)


def _attend(
    query: torch.Tensor,  # [1, H, Q, D]
    key: torch.Tensor,  # [1, G, K, D]
    value: torch.Tensor,  # [1, G, K, D]
    rows: MaskedRows,
    *,
    scaling: float | None,
    softcap: float | None,
    sinks_H: torch.Tensor | None,
) -> torch.Tensor:
    """[1, H, Q, D]. The R query heads of one key/value head are laid out as a batch of R, for which its keys and values
    are expanded: no key is copied, and no mask repeated."""
    num_heads, num_key_heads = query.shape[1], key.shape[1]
    repeats = num_heads // num_key_heads
    query_RGQD = query.view(num_key_heads, repeats, *query.shape[2:]).transpose(0, 1)
    key_RGKD, value_RGKD = key.expand(repeats, -1, -1, -1), value.expand(repeats, -1, -1, -1)
    if softcap is None and sinks_H is None:
        attended = F.scaled_dot_product_attention(
            query_RGQD, key_RGKD, value_RGKD, attn_mask=rows.mask_QK, is_causal=rows.is_causal, scale=scaling
        )
    else:
        sinks_RG = None if sinks_H is None else sinks_H.view(num_key_heads, repeats).T
        attended = _attend_densely(
            query_RGQD, key_RGKD, value_RGKD, rows, scaling=scaling, softcap=softcap, sinks_RG=sinks_RG
        )
    return attended.transpose(0, 1).flatten(0, 1)[None]


def _attend_densely(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    rows: MaskedRows,
    *,
    scaling: float | None,
    softcap: float | None,
    sinks_RG: torch.Tensor | None,
) -> torch.Tensor:
    """With soft-capped scores, or with a sink: a key of every head that takes its share and has no value."""
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    scores = (query @ key.transpose(-1, -2)) * scale
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    if rows.mask_QK is not None:
        scores = scores + rows.mask_QK
    elif rows.is_causal:
        is_later = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu_(1)
        scores = scores.masked_fill(is_later, -torch.inf)
    if sinks_RG is not None:
        sinks = sinks_RG[..., None, None].expand(*scores.shape[:-1], 1)
        scores = torch.cat([scores, sinks.to(scores.dtype)], dim=-1)
    weights = scores.softmax(dim=-1, dtype=torch.float32).to(value.dtype)
    return weights[..., : key.shape[-2]] @ value
