"""Products of hidden states with K rows of a matrix each: value, and gradients to both, never [N, V] or [N, K, D].

What is gathered or multiplied out exists for a few positions at a time, few enough to stay in a core's cache.
"""

# N = positions, C = positions of a chunk, K = rows per position, V = rows of the matrix, D = hidden size,
# S = slots (N x K), U = rows of the matrix that occur

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F

CHUNK_ELEMENTS = {"cpu": 1 << 20, "cuda": 1 << 26}
"""Numbers of a chunk of gathered rows, [C, K, D]: the second-level caches of a CPU, 256 MB of a GPU (bench/head.py)."""
ROWS_PER_SCATTER = 4096
"""Rows of the matrix's gradient that are summed at once."""


def row_products(x_ND: torch.Tensor, weight_VD: torch.Tensor, ids_NK: torch.Tensor) -> torch.Tensor:
    """x . weight[id] for each position's K ids, [N, K], in fp32 at least. Ids may repeat."""
    # Typed by its stubs as taking anything and returning anything.
    products_NK: torch.Tensor = _RowProducts.apply(x_ND, weight_VD, ids_NK)  # type: ignore[no-untyped-call]
    return products_NK


class _RowProducts(torch.autograd.Function):
    """Keeps its inputs alone, and gathers rows again for the backward."""

    @staticmethod
    def forward(  # Any: autograd's context has no public type
        ctx: Any, x_ND: torch.Tensor, weight_VD: torch.Tensor, ids_NK: torch.Tensor
    ) -> torch.Tensor:
        ctx.save_for_backward(x_ND, weight_VD, ids_NK)
        dtype = torch.promote_types(x_ND.dtype, torch.float32)
        products_NK = x_ND.new_empty(ids_NK.shape, dtype=dtype)
        for rows in _chunks(ids_NK, width=weight_VD.shape[1]):
            gathered_CKD = F.embedding(ids_NK[rows], weight_VD).to(dtype)
            torch.sum(gathered_CKD.mul_(x_ND[rows, None].to(dtype)), dim=2, out=products_NK[rows])
        return products_NK

    @staticmethod
    def backward(  # Any: as above
        ctx: Any, grad_NK: torch.Tensor
    ) -> tuple[torch.Tensor | None, torch.Tensor | None, None]:
        x_ND, weight_VD, ids_NK = ctx.saved_tensors
        needs_x, needs_weight, _ = ctx.needs_input_grad
        return (
            _grad_of_x(grad_NK, weight_VD, ids_NK).to(x_ND.dtype) if needs_x else None,
            _grad_of_weight(grad_NK, x_ND, weight_VD, ids_NK) if needs_weight else None,
            None,
        )


def _grad_of_x(grad_NK: torch.Tensor, weight_VD: torch.Tensor, ids_NK: torch.Tensor) -> torch.Tensor:
    """sum over k of grad . weight[id], [N, D]."""
    if weight_VD.dtype == grad_NK.dtype:
        return F.embedding_bag(ids_NK, weight_VD, per_sample_weights=grad_NK, mode="sum")
    # A matrix in half precision: its rows are widened chunk by chunk.
    grad_ND = grad_NK.new_empty(len(ids_NK), weight_VD.shape[1])
    for rows in _chunks(ids_NK, width=weight_VD.shape[1]):
        gathered_CKD = F.embedding(ids_NK[rows], weight_VD).to(grad_NK.dtype)
        torch.bmm(grad_NK[rows].unsqueeze(1), gathered_CKD, out=grad_ND[rows].unsqueeze(1))
    return grad_ND


def _grad_of_weight(
    grad_NK: torch.Tensor, x_ND: torch.Tensor, weight_VD: torch.Tensor, ids_NK: torch.Tensor
) -> torch.Tensor:
    """Row v is the sum of grad . x over the slots that hold v, [V, D]. The slots are sorted by id, so that each row is
    written once: always in the same order, and rounded once to the matrix's dtype."""
    sorted_S, order_S = ids_NK.flatten().sort(stable=True)
    ids_U, counts_U = torch.unique_consecutive(sorted_S, return_counts=True)
    stops_U = counts_U.cumsum(0)
    grad_S = grad_NK.flatten()[order_S]
    positions_S = order_S // ids_NK.shape[1]
    x_ND = x_ND.to(grad_NK.dtype)
    grad_VD = torch.zeros_like(weight_VD)
    for start in range(0, len(ids_U), ROWS_PER_SCATTER):
        rows = slice(start, start + ROWS_PER_SCATTER)
        first = int(stops_U[start - 1]) if start else 0
        last = int(stops_U[rows][-1])
        summed_UD = F.embedding_bag(
            positions_S[first:last],
            x_ND,
            offsets=stops_U[rows] - counts_U[rows] - first,
            per_sample_weights=grad_S[first:last],
            mode="sum",
        )
        grad_VD.index_copy_(0, ids_U[rows], summed_UD.to(weight_VD.dtype))
    return grad_VD


def _chunks(ids_NK: torch.Tensor, *, width: int) -> Iterator[slice]:
    elements = CHUNK_ELEMENTS["cpu" if ids_NK.device.type == "cpu" else "cuda"]
    size = max(1, elements // (ids_NK.shape[1] * width))
    for start in range(0, len(ids_NK), size):
        yield slice(start, start + size)
