from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from preceptor_server.engines.hf.masks import TILE_ROWS, LazyMask, MaskFunction, UnsupportedAttentionError
from transformers.masking_utils import (
    bidirectional_mask_function,
    causal_mask_function,
    chunked_causal_mask_function,
    sliding_window_causal_mask_function,
)

# Q = queries, K = keys

NUM_POSITIONS = 2 * TILE_ROWS + 37
FUNCTIONS: dict[str, MaskFunction] = {
    "causal": causal_mask_function,
    "window of 7": sliding_window_causal_mask_function(7),
    "window of 300": sliding_window_causal_mask_function(300),
    "chunks of 11": chunked_causal_mask_function(11, torch.zeros(1, dtype=torch.long)),
    "chunks of 400": chunked_causal_mask_function(400, torch.zeros(1, dtype=torch.long)),
}
SEEN: dict[str, Callable[[int, int], bool]] = {
    "causal": lambda q, k: k <= q,
    "window of 7": lambda q, k: q - 7 < k <= q,
    "window of 300": lambda q, k: q - 300 < k <= q,
    "chunks of 11": lambda q, k: k <= q and k // 11 == q // 11,
    "chunks of 400": lambda q, k: k <= q and k // 400 == q // 400,
}


def lazy(function: MaskFunction, *, num_positions: int = NUM_POSITIONS) -> LazyMask:
    return LazyMask(function, num_positions=num_positions, dtype=torch.float32, device=torch.device("cpu"))


def seen_keys(mask: LazyMask, first: int, stop: int) -> list[set[int]]:
    """For each query the keys that the pieces together let it see."""
    rows: list[set[int]] = []
    for piece in mask.rows(first, stop):
        assert piece.first_query == first + len(rows), "the pieces tile the queries"
        for query in range(piece.first_query, piece.stop_query):
            keys = range(piece.first_key, piece.stop_key)
            if piece.mask_QK is not None:
                values_K = piece.mask_QK[query - piece.first_query].tolist()
                assert set(values_K) <= {0.0, float("-inf")}
                rows.append({key for key, value in zip(keys, values_K, strict=True) if value == 0.0})
            else:
                rows.append({key for key in keys if key <= query or not piece.is_causal})
    assert len(rows) == stop - first
    return rows


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize(
    ("first", "stop"),
    [
        (0, 1),
        (0, 12),
        (0, NUM_POSITIONS),
        (5, 6),
        (3, 40),
        (TILE_ROWS - 1, TILE_ROWS),
        (TILE_ROWS - 1, TILE_ROWS + 1),
        (TILE_ROWS, 2 * TILE_ROWS),
        (17, NUM_POSITIONS),
        (NUM_POSITIONS - 1, NUM_POSITIONS),
    ],
)
def test_queries_see_what_the_function_says(name: str, first: int, stop: int) -> None:
    expected = [{key for key in range(stop) if SEEN[name](query, key)} for query in range(first, stop)]
    assert seen_keys(lazy(FUNCTIONS[name]), first, stop) == expected


@pytest.mark.parametrize("window", [None, 9])
def test_a_model_without_a_mask_sees_what_comes_before_within_its_window(window: int | None) -> None:
    mask = LazyMask.causal(window=window, num_positions=50, dtype=torch.float32, device=torch.device("cpu"))
    reach = 1_000 if window is None else window
    assert seen_keys(mask, 20, 50) == [{k for k in range(50) if q - reach < k <= q} for q in range(20, 50)]


def test_a_function_that_sees_what_comes_later_is_refused() -> None:
    with pytest.raises(UnsupportedAttentionError, match="later"):
        list(lazy(bidirectional_mask_function).rows(3, 9))


def test_all_of_a_mask_is_the_mask_and_a_piece_of_it_is_refused() -> None:
    mask = lazy(causal_mask_function)
    assert mask[:, :, slice(-0, None), :] is mask
    for rows in (slice(-1, None), slice(0, 7)):
        with pytest.raises(UnsupportedAttentionError, match="cut pieces out of"):
            mask[:, :, rows, :]


def test_no_tile_is_larger_than_its_rows_and_keys_far_outside_a_window_are_left_out() -> None:
    mask = lazy(sliding_window_causal_mask_function(7), num_positions=10_000)
    [piece] = mask.rows(9_990, 10_000)
    assert (piece.first_key, piece.stop_key) == (9_984 - 6, 10_000)
    assert piece.mask_QK is not None
    num_bytes = piece.mask_QK.untyped_storage().nbytes()
    assert num_bytes <= TILE_ROWS * (TILE_ROWS + 16) * 4


def test_what_is_kept_for_other_layers_is_bounded_and_what_is_not_kept_is_the_same() -> None:
    mask = lazy(sliding_window_causal_mask_function(30_000), num_positions=40_000)
    firsts = range(0, 40_000, 5_000)
    pieces = {first: next(mask.rows(first, first + 3)) for first in firsts}
    again = {first: next(mask.rows(first, first + 3)) for first in firsts}
    kept = [first for first in firsts if _storage(pieces[first].mask_QK) == _storage(again[first].mask_QK)]
    assert kept != list(firsts), "all eight would take 160 MB"
    for first in firsts:
        one, other = pieces[first].mask_QK, again[first].mask_QK
        assert (one is None) == (other is None)
        assert one is None or other is None or torch.equal(one, other)


def _storage(mask_QK: torch.Tensor | None) -> int:
    return 0 if mask_QK is None else mask_QK.untyped_storage().data_ptr()
