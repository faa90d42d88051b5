"""A head, whatever it is made of: logits = cap * tanh(scale * (sum of x . W + bias) / cap), both extras optional."""

# N = positions, K = tokens per position, V = vocabulary, D = hidden size

from __future__ import annotations

from dataclasses import dataclass

import torch

from preceptor_client.train.student.head.dense import Dense, chunked_log_partition, gathered_logits
from preceptor_client.train.student.head.sparse import row_products
from preceptor_client.train.student.head.terms import terms_of

DENSE_SHARE = 16
"""With more than V / DENSE_SHARE tokens per position, whole products are cheaper than rows (bench/head.py)."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Head:
    """Exact in value and gradient: to the hidden states, the matrix (tied to the embedding or not), the bias, and the
    factors of a LoRA adapter. Products of bf16 are added up in fp32, and logits are fp32 at least."""

    module: torch.nn.Module
    """A Linear, or peft's adapter around one."""
    scale: float = 1.0
    """Cohere, Granite."""
    softcap: float | None = None
    """Gemma."""

    @property
    def vocabulary_size(self) -> int:
        return terms_of(self.module).size

    def logits_at(self, hidden_ND: torch.Tensor, ids_NK: torch.Tensor) -> torch.Tensor:
        """The logits of each position's K tokens, [N, K]."""
        terms = terms_of(self.module)
        if ids_NK.shape[1] * DENSE_SHARE > terms.size:
            return self.transformed(gathered_logits(Dense(terms), hidden_ND, ids_NK))
        parts = [row_products(x_ND, weight_VD, ids_NK) for x_ND, weight_VD in terms.inputs(hidden_ND)]
        logits_NK = torch.stack(parts).sum(dim=0) if len(parts) > 1 else parts[0]
        if terms.bias_V is not None:
            logits_NK = logits_NK + terms.bias_V[ids_NK]
        return self.transformed(logits_NK)

    def log_partition(self, hidden_ND: torch.Tensor, *, temperature: float = 1.0) -> torch.Tensor:
        """Log-sum-exp of logits / temperature over the whole vocabulary, [N]."""
        dense = Dense(terms_of(self.module), scale=self.scale, softcap=self.softcap)
        return chunked_log_partition(dense, hidden_ND, temperature=temperature)

    @torch.no_grad()
    def logits(self, hidden_ND: torch.Tensor) -> torch.Tensor:
        """All logits, [N, V], without gradients: for a few positions."""
        dense = Dense(terms_of(self.module), scale=self.scale, softcap=self.softcap)
        return dense.logits([x_ND for x_ND, _ in dense.terms.inputs(hidden_ND)])

    def transformed(self, logits_NK: torch.Tensor) -> torch.Tensor:
        """What is done to the sums of products, one by one."""
        if self.scale != 1.0:
            logits_NK = logits_NK * self.scale
        if self.softcap is not None:
            logits_NK = torch.tanh(logits_NK / self.softcap) * self.softcap
        return logits_NK
