"""The student's logits at the support only: K rows of the head per position, never [N, V]. Knows nothing of losses."""

# N = positions, C = positions of a chunk, K = support size, V = vocabulary, D = hidden size

from __future__ import annotations

from typing import Any

import torch

ROWS_PER_CHUNK = 512
"""Bounds the gathered rows of the head, [C, K, D], and the dense logits of `log_partition`, [C, V]."""


def support_logits(hidden_ND: torch.Tensor, head: torch.nn.Linear, support_ids_NK: torch.Tensor) -> torch.Tensor:
    """hidden . head[id] + bias[id] for each position's K ids, shape [N, K]. Exact; hidden and head get gradients."""
    # Typed by its stubs as taking anything and returning anything.
    logits_NK: torch.Tensor = _SupportLogits.apply(hidden_ND, head.weight, support_ids_NK)  # type: ignore[no-untyped-call]
    if head.bias is not None:
        logits_NK = logits_NK + head.bias[support_ids_NK]
    return logits_NK


@torch.no_grad()
def log_partition(hidden_ND: torch.Tensor, head: torch.nn.Linear, *, temperature: float = 1.0) -> torch.Tensor:
    """Log-sum-exp over the whole vocabulary of logits / temperature, in fp32, shape [N]. Without gradients: for
    measuring what share of the student's mass lies inside a support."""
    chunks = [
        torch.logsumexp(head(chunk_CD).float() / temperature, dim=1)
        for chunk_CD in torch.split(hidden_ND, ROWS_PER_CHUNK)
    ]
    return torch.cat(chunks)


class _SupportLogits(torch.autograd.Function):
    """Keeps hidden, head and ids for the backward and gathers the head's rows again there, a chunk at a time."""

    @staticmethod
    def forward(  # Any: autograd's context has no public type
        ctx: Any, hidden_ND: torch.Tensor, weight_VD: torch.Tensor, support_ids_NK: torch.Tensor
    ) -> torch.Tensor:
        ctx.save_for_backward(hidden_ND, weight_VD, support_ids_NK)
        logits_NK = hidden_ND.new_empty(support_ids_NK.shape)
        for rows in _chunks(hidden_ND):
            rows_CKD = weight_VD[support_ids_NK[rows]]
            torch.bmm(rows_CKD, hidden_ND[rows].unsqueeze(2), out=logits_NK[rows].unsqueeze(2))
        return logits_NK

    @staticmethod
    def backward(  # Any: as above
        ctx: Any, grad_NK: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, None]:
        hidden_ND, weight_VD, support_ids_NK = ctx.saved_tensors
        grad_hidden_ND = torch.empty_like(hidden_ND)
        grad_weight_VD = torch.zeros_like(weight_VD)
        for rows in _chunks(hidden_ND):
            ids_CK, grad_CK = support_ids_NK[rows], grad_NK[rows]
            torch.bmm(grad_CK.unsqueeze(1), weight_VD[ids_CK], out=grad_hidden_ND[rows].unsqueeze(1))
            outer_CKD = grad_CK.unsqueeze(2) * hidden_ND[rows].unsqueeze(1)
            grad_weight_VD.index_add_(0, ids_CK.flatten(), outer_CKD.flatten(0, 1))
        return grad_hidden_ND, grad_weight_VD, None


def _chunks(hidden_ND: torch.Tensor) -> list[slice]:
    return [slice(start, start + ROWS_PER_CHUNK) for start in range(0, len(hidden_ND), ROWS_PER_CHUNK)]
