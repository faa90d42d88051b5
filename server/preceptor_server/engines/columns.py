"""Turns a chunk of logits into columns: exact top-K, logprobs of given ids, tail mass, entropy. Pure tensors.

All sums are taken in fp32 over at most one chunk of rows at a time; no [T, V] buffer for a whole sequence exists.
"""

# R = rows of the chunk, V = vocabulary size, K = support size, B = tile size, E = candidates of all rows

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F

TILE = 32
"""Columns per tile of the top-K search: the fastest of 32, 64, 128 and 192 at V = 49,152 (bench/topk.py)."""

CPU_BLOCK_ROWS = 32
"""Rows whose columns are computed at once on a CPU: their buffers stay in its cache, and are small enough that the
allocator keeps them. With 256 rows each buffer is mapped anew, and page faults cost more than the arithmetic."""

_EXP_IS_ZERO = -200.0
"""exp of it is 0 in fp32, and 0 * it is 0, which 0 * -inf is not."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ChunkColumns:
    """The columns of R rows; those where `is_finite_R` is False are meaningless."""

    is_finite_R: torch.Tensor
    support_ids_RK: torch.Tensor
    support_logprobs_RK: torch.Tensor
    sampled_logprobs_R: torch.Tensor
    log_tail_mass_R: torch.Tensor
    entropies_R: torch.Tensor
    candidate_logprobs_E: torch.Tensor | None = None
    """None where no row has candidates."""


def columns_of(
    logits_RV: torch.Tensor,
    *,
    sampled_ids_R: torch.Tensor,
    temperatures_R: torch.Tensor,
    top_ks_R: torch.Tensor,
    max_top_k: int,
    candidate_rows_E: torch.Tensor | None = None,
    candidate_ids_E: torch.Tensor | None = None,
) -> ChunkColumns:
    """Logprobs of the softmax of logits / temperature over the whole vocabulary; natural logs.

    Row r's support is the first `top_ks_R[r]` entries of its row. Beyond them, up to `max_top_k`, stand the next
    likeliest tokens, which its tail mass counts as outside. Candidate e is the id `candidate_ids_E[e]` of the row
    `candidate_rows_E[e]`; rows ascend.
    """
    num_rows = len(logits_RV)
    block_rows = CPU_BLOCK_ROWS if logits_RV.device.type == "cpu" else max(num_rows, 1)
    blocks: list[ChunkColumns] = []
    for start in range(0, max(num_rows, 1), block_rows):
        rows = slice(start, min(start + block_rows, num_rows))
        rows_E, ids_E = candidate_rows_E, candidate_ids_E
        if rows_E is not None and ids_E is not None and num_rows > block_rows:
            first, stop = torch.searchsorted(rows_E, torch.tensor([rows.start, rows.stop])).tolist()
            rows_E, ids_E = rows_E[first:stop] - rows.start, ids_E[first:stop]
        blocks.append(
            _columns_of_block(
                logits_RV[rows],
                sampled_ids_R=sampled_ids_R[rows],
                temperatures_R=temperatures_R[rows],
                top_ks_R=top_ks_R[rows],
                max_top_k=max_top_k,
                candidate_rows_E=rows_E,
                candidate_ids_E=ids_E,
            )
        )
    return blocks[0] if len(blocks) == 1 else _joined(blocks)


def _joined(blocks: list[ChunkColumns]) -> ChunkColumns:
    has_candidates = blocks[0].candidate_logprobs_E is not None
    names = [name for name in ChunkColumns.__dataclass_fields__ if has_candidates or name != "candidate_logprobs_E"]
    return ChunkColumns(**{name: torch.cat([getattr(block, name) for block in blocks]) for name in names})


def _columns_of_block(
    logits_RV: torch.Tensor,
    *,
    sampled_ids_R: torch.Tensor,
    temperatures_R: torch.Tensor,
    top_ks_R: torch.Tensor,
    max_top_k: int,
    candidate_rows_E: torch.Tensor | None,
    candidate_ids_E: torch.Tensor | None,
) -> ChunkColumns:
    # + 0.0 turns -0.0 into 0.0, so that equal logits have equal bits.
    scaled_RV = (logits_RV.float() / temperatures_R[:, None]).add_(0.0)
    support_ids_RK = top_k_ids(scaled_RV, max_top_k)
    max_R1 = scaled_RV.gather(1, support_ids_RK[:, :1])
    scaled_RV -= max_R1
    support_RK = scaled_RV.gather(1, support_ids_RK)
    sampled_R = scaled_RV.gather(1, sampled_ids_R[:, None])[:, 0]
    candidates_E = None if candidate_ids_E is None else scaled_RV[candidate_rows_E, candidate_ids_E]

    scaled_RV.clamp_(min=_EXP_IS_ZERO)
    weights_RV = scaled_RV.exp()
    weighted_R = torch.linalg.vecdot(weights_RV, scaled_RV)
    support_weights_RK = weights_RV.gather(1, support_ids_RK)
    # The tail is summed by itself: total - support would lose a small tail to cancellation.
    tail_R = weights_RV.scatter_(1, support_ids_RK, 0.0).sum(dim=1)
    total_R = tail_R + support_weights_RK.sum(dim=1)
    is_outside_RK = torch.arange(max_top_k, device=logits_RV.device)[None, :] >= top_ks_R[:, None]
    tail_R = tail_R + (support_weights_RK * is_outside_RK).sum(dim=1)
    log_total_R = total_R.log()
    return ChunkColumns(
        is_finite_R=max_R1[:, 0].isfinite() & log_total_R.isfinite(),
        support_ids_RK=support_ids_RK,
        support_logprobs_RK=support_RK - log_total_R[:, None],
        sampled_logprobs_R=sampled_R - log_total_R,
        log_tail_mass_R=tail_R.log() - log_total_R,
        entropies_R=log_total_R - weighted_R / total_R,
        candidate_logprobs_E=None if candidates_E is None else candidates_E - log_total_R[candidate_rows_E],
    )


def top_k_ids(values_RV: torch.Tensor, k: int) -> torch.Tensor:
    """Ids of the K largest values of each row, by descending value, equal values by ascending id; exact, [R, K].

    The K largest lie in the K tiles with the largest maxima, ties again by ascending index: every tile before theirs in
    that order holds an element that comes before them.
    """
    num_rows, vocabulary_size = values_RV.shape
    if vocabulary_size <= TILE * k:
        ids_V = torch.arange(vocabulary_size, device=values_RV.device)
        return _first_k(values_RV, ids_V.expand(num_rows, -1), k)
    padding = -vocabulary_size % TILE
    padded = F.pad(values_RV, (0, padding), value=-torch.inf) if padding else values_RV
    tiles = padded.view(num_rows, -1, TILE)
    tile_ids = torch.arange(tiles.shape[1], device=values_RV.device).expand(num_rows, -1)
    best_RK = _first_k(tiles.amax(dim=-1), tile_ids, k)
    candidates = tiles.gather(1, best_RK[..., None].expand(-1, -1, TILE)).flatten(1)
    ids = (best_RK[..., None] * TILE + torch.arange(TILE, device=values_RV.device)).flatten(1)
    # Padding comes before a negative NaN: such a row has no meaning, but its ids must stay inside the vocabulary.
    return _first_k(candidates, ids, k).clamp_(max=vocabulary_size - 1)


def _first_k(values: torch.Tensor, ids: torch.Tensor, k: int) -> torch.Tensor:
    """The `ids` of the k largest `values`, ties by ascending id: both as one integer, the value in its upper half."""
    bits = values.view(torch.int32)
    ordered = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits)  # the order of floats, as integers
    largest_id = (1 << 31) - 1
    keys = (ordered.long() << 32) | (largest_id - ids)
    return largest_id - (keys.topk(k, dim=1).values & 0xFFFFFFFF)
