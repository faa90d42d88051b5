"""What the model's own mask says of a packed batch, asked for a few rows at a time.

transformers describes a mask as a function of two positions (causal, within a window, within a chunk), and lets an
attention implementation turn it into whatever it can use. Here that is an object which holds the function. Every
sequence of a packed batch has the positions 0, 1, 2, ..., so that one function serves all its segments.
"""

# Q = rows of a tile (queries), K = its columns (keys)

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from transformers.masking_utils import causal_mask_function, sliding_window_causal_mask_function

MaskFunction = Callable[..., Any]  # Any: transformers says bool of what are tensors
"""(batch index, head index, position of the query, position of the key) -> whether it is seen."""

TILE_ROWS = 256
"""Queries whose mask exists at once, in one piece."""
MAX_KEPT_BYTES = 64 * 1024 * 1024
"""Tiles that are kept for the other layers of the same forward; what is beyond it is made anew at each use."""


class UnsupportedAttentionError(ValueError):
    """The model's attention needs something that packing does not do."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class MaskedRows:
    """Some queries of one sequence, and the keys that any of them sees."""

    first_query: int
    stop_query: int
    first_key: int
    stop_key: int
    mask_QK: torch.Tensor | None
    """Additive. None: every query sees all these keys, or all up to itself where `is_causal`."""
    is_causal: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class _Tile:
    """The mask of the rows from `first_query` on, without the keys before `first_key`, which none of them sees."""

    first_query: int
    first_key: int
    mask_QK: torch.Tensor
    is_causal: bool
    """Whether it hides nothing but what comes later."""


class LazyMask:
    """The mask of the layers of one kind, in one forward. It lives no longer than that forward."""

    def __init__(self, function: MaskFunction, *, num_positions: int, dtype: torch.dtype, device: torch.device) -> None:
        """`num_positions` are those of the longest sequence."""
        self._function = function
        self._num_positions = num_positions
        self._dtype = dtype
        self._device = device
        self._kept: dict[int, _Tile] = {}
        self._num_kept_bytes = 0

    @classmethod
    def causal(cls, *, window: int | None, num_positions: int, dtype: torch.dtype, device: torch.device) -> LazyMask:
        """For a model that leaves its mask to the attention function."""
        function = causal_mask_function if window is None else sliding_window_causal_mask_function(window)
        return cls(function, num_positions=num_positions, dtype=dtype, device=device)

    def __getitem__(self, key: tuple[object, ...]) -> LazyMask:
        """Itself, for a model that cuts its mask to the rows that it goes on with, where those are all."""
        if all(part in (slice(None), slice(0, None)) for part in key):
            return self
        raise UnsupportedAttentionError("its layers cut pieces out of their attention mask")

    def rows(self, first_query: int, stop_query: int, *, may_be_long: bool = True) -> Iterator[MaskedRows]:
        """All that the queries at these positions see, cut into pieces of at most TILE_ROWS rows; plainly causal ones
        are one piece where it `may_be_long`."""
        if may_be_long and first_query == 0 and self._function is causal_mask_function:
            yield MaskedRows(
                first_query=0, stop_query=stop_query, first_key=0, stop_key=stop_query, mask_QK=None, is_causal=True
            )
            return
        while first_query < stop_query:
            tile = self._tile(first_query // TILE_ROWS)
            stop = min(stop_query, tile.first_query + TILE_ROWS)
            yield _cut(tile, first_query, stop)
            first_query = stop

    def _tile(self, index: int) -> _Tile:
        if (kept := self._kept.get(index)) is not None:
            return kept
        tile = self._make_tile(index)
        num_bytes = tile.mask_QK.untyped_storage().nbytes()
        if self._num_kept_bytes + num_bytes <= MAX_KEPT_BYTES:
            self._kept[index] = tile
            self._num_kept_bytes += num_bytes
        return tile

    def _make_tile(self, index: int) -> _Tile:
        first = index * TILE_ROWS
        stop = min(first + TILE_ROWS, self._num_positions)
        queries_Q1 = torch.arange(first, stop, device=self._device)[:, None]
        keys_1K = torch.arange(stop, device=self._device)[None, :]
        batch = head = torch.zeros((), dtype=torch.long, device=self._device)
        is_seen_QK: torch.Tensor = self._function(batch, head, queries_Q1, keys_1K).expand(stop - first, stop)
        first_key = int(is_seen_QK.any(dim=0).int().argmax())
        is_past_QK = keys_1K <= queries_Q1
        if not bool((is_seen_QK <= is_past_QK).all()):
            raise UnsupportedAttentionError("its attention sees tokens that come later")
        seen_QK = is_seen_QK[:, first_key:]
        num_queries, num_keys = seen_QK.shape
        # CUDA's kernels want rows that begin at multiples of 16 numbers.
        padded = torch.zeros(num_queries, num_keys + -num_keys % 16, dtype=self._dtype, device=self._device)
        mask_QK = padded[:, :num_keys].masked_fill_(~seen_QK, -torch.inf)
        return _Tile(first, first_key, mask_QK, is_causal=bool((is_seen_QK == is_past_QK).all()))


def _cut(tile: _Tile, first_query: int, stop_query: int) -> MaskedRows:
    """Without the keys that come after the last of the rows, which none of them sees."""
    is_whole = tile.is_causal and (first_query == 0 or stop_query == first_query + 1)
    rows = slice(first_query - tile.first_query, stop_query - tile.first_query)
    return MaskedRows(
        first_query=first_query,
        stop_query=stop_query,
        first_key=tile.first_key,
        stop_key=stop_query,
        mask_QK=None if is_whole else tile.mask_QK[rows, : stop_query - tile.first_key],
        is_causal=is_whole and first_query == 0,
    )
