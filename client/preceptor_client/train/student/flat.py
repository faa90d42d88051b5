"""One forward over prompts and responses without padding: all tokens in one row, what prompts share once.

Every matrix of the model sees one row of tokens, and its gradient is made once. Only attention needs to know where a
sequence begins: it lays the row out as a padded batch, whose queries see the shared prefix and, causally, their own
sequence. Padding lies to the right, where no query of a token looks.
"""

# P = tokens of the shared prefix, F = tokens of the row, B = sequences, T = longest sequence after the prefix,
# H = query heads, G = key/value heads, R = H / G, D = head size

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from transformers import AttentionInterface, DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from preceptor_client.train.student.head.body import states_before_head

IMPLEMENTATION = "preceptor_flat"
"""The name to give to `model.set_attn_implementation`."""


class UnsupportedAttentionError(ValueError):
    """The model's attention does something that this one does not."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FlatRow:
    """The tokens of a batch, and where they belong."""

    token_ids_F: torch.Tensor
    positions_F: torch.Tensor
    """Of each token in its own sequence."""
    prefix_length: int
    starts_B: tuple[int, ...]
    """Where each sequence goes on after the prefix."""
    cells_BT: torch.Tensor
    """For each cell of the padded batch the token that stands there; behind a sequence's end, any."""
    places_F: torch.Tensor
    """For each token after the prefix its cell, counted row by row."""
    mask_TK: torch.Tensor
    """Additive, [T, P + T]."""


def flat_row(prefix_ids: Sequence[int], rests: Sequence[Sequence[int]], *, device: torch.device) -> FlatRow:
    """Lays out sequences that share a prefix, which may be empty; `rests` is what follows it, a token or more each."""
    length_P, length_T = len(prefix_ids), max(map(len, rests))
    lengths_B = torch.tensor([len(rest) for rest in rests])
    starts_B = length_P + lengths_B.cumsum(0) - lengths_B
    columns_T = torch.arange(length_T)
    is_token_BT = columns_T < lengths_B[:, None]
    cells_BT = torch.where(is_token_BT, starts_B[:, None] + columns_T, starts_B[:, None])
    is_seen_TK = torch.arange(length_P + length_T) <= length_P + columns_T[:, None]
    rest_positions = (length_P + columns_T).expand(len(rests), -1)[is_token_BT]
    return FlatRow(
        token_ids_F=torch.tensor([*prefix_ids, *(token for rest in rests for token in rest)]).to(device),
        positions_F=torch.cat([torch.arange(length_P), rest_positions]).to(device),
        prefix_length=length_P,
        starts_B=tuple(starts_B.tolist()),
        cells_BT=cells_BT.to(device),
        places_F=is_token_BT.flatten().nonzero()[:, 0].to(device),
        mask_TK=torch.zeros(is_seen_TK.shape).masked_fill(~is_seen_TK, float("-inf")).to(device),
    )


def flat_hidden_states(model: PreTrainedModel, row: FlatRow) -> torch.Tensor:
    """The states that the head is given for every token of the row, with gradients."""
    with _attending_along(model, row):
        return states_before_head(model, row.token_ids_F[None], position_ids=row.positions_F[None])[0]


def keeps_all_tokens(model: PreTrainedModel) -> bool:
    """Whether all that it keeps of a sequence is the keys and values of every token: no sliding windows, no recurrent
    states."""
    return all(type(layer) is DynamicLayer for layer in DynamicCache(config=model.config).layers)


_row: ContextVar[FlatRow] = ContextVar("row")


@contextmanager
def _attending_along(model: PreTrainedModel, row: FlatRow) -> Iterator[None]:
    before = model.config._attn_implementation
    token = _row.set(row)
    model.set_attn_implementation(IMPLEMENTATION)
    try:
        yield
    finally:
        model.set_attn_implementation(before)
        _row.reset(token)


def flat_attention(
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
    """One layer's attention, [1, F, H, D]."""
    if softcap is not None or s_aux is not None or sliding_window is not None or dropout:
        raise UnsupportedAttentionError("soft caps, sinks, windows and dropout are not done here")
    # transformers builds no mask for an attention function of our own; a model that does has something in mind.
    if attention_mask is not None or not getattr(module, "is_causal", True):
        raise UnsupportedAttentionError("masks other than the causal one are not done here")
    row = _row.get()
    P, (B, T) = row.prefix_length, row.cells_BT.shape
    H, G, D = query.shape[1], key.shape[1], value.shape[3]
    cells = row.cells_BT.flatten()
    # The query heads of one key/value head are stacked as rows, so that no key is copied.
    stacked = _padded(query, cells, B).view(B, G, H // G * T, query.shape[3])
    keys, values = (_with_prefix(states, _padded(states, cells, B), P) for states in (key, value))
    mask = row.mask_TK.to(query.dtype).repeat(H // G, 1)
    attended = F.scaled_dot_product_attention(stacked, keys, values, attn_mask=mask, scale=scaling)
    # CUDA's kernels lay their output out as [B, tokens, heads, D].
    rest_FHD = attended.reshape(B, H, T, D).transpose(1, 2).reshape(B * T, H, D).index_select(0, row.places_F)
    if not P:
        return rest_FHD[None], None
    prefix = F.scaled_dot_product_attention(
        query[:, :, :P], key[:, :, :P], value[:, :, :P], is_causal=True, scale=scaling, enable_gqa=H != G
    )
    return torch.cat([prefix.transpose(1, 2), rest_FHD[None]], dim=1), None


AttentionInterface.register(IMPLEMENTATION, flat_attention)


def _padded(states: torch.Tensor, cells: torch.Tensor, num_sequences: int) -> torch.Tensor:
    """States of the row, [1, heads, F, D], as those of a padded batch, [B, heads, T, D]."""
    gathered = states[0].index_select(1, cells)
    return gathered.view(len(gathered), num_sequences, -1, states.shape[3]).transpose(0, 1).contiguous()


def _with_prefix(states: torch.Tensor, padded: torch.Tensor, length_P: int) -> torch.Tensor:
    """Keys or values with those of the prefix before them, [B, G, P + T, D]."""
    if not length_P:
        return padded
    return torch.cat([states[:, :, :length_P].expand(len(padded), -1, -1, -1), padded], dim=2)
