"""All logits of a few positions at a time: the normaliser with its gradient, and logits at very many tokens.

What is [C, V] exists for one chunk of positions, in the forward and again in the backward. cut-cross-entropy (GPUs
only) and Liger compute normalisers inside whole losses against labels or a dense teacher; what is needed here is the
normaliser by itself, with a temperature, adapters, a scale and a soft cap.
"""

# N = positions, C = positions of a chunk, K = tokens per position, V = vocabulary, D = hidden size

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from preceptor_client.train.student.head.terms import Terms

CHUNK_ELEMENTS = 1 << 24
"""Logits of a chunk, [C, V]: 64 MB in fp32, and about three such buffers in the backward."""
_ROWS_WIDENED_AT_ONCE = 4096
"""Rows of a half-precision matrix that a CPU widens to fp32 at a time."""


@dataclass(frozen=True, slots=True, eq=False)
class Dense:
    """The whole head as a function of what its matrices are multiplied with."""

    terms: Terms
    scale: float = 1.0
    softcap: float | None = None

    def logits(self, inputs_CD: Sequence[torch.Tensor]) -> torch.Tensor:
        """[C, V], in fp32 at least."""
        return self._capped(self._linear(inputs_CD))

    def logits_and_slope(self, inputs_CD: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor | float]:
        """The logits, and their derivative by the plain products: [C, V], or one number for all."""
        logits_CV = self._capped(self._linear(inputs_CD))
        if self.softcap is None:
            return logits_CV, self.scale
        return logits_CV, self.scale * (1 - (logits_CV / self.softcap).square())

    def _linear(self, inputs_CD: Sequence[torch.Tensor]) -> torch.Tensor:
        weights = [term.weight_VD for term in self.terms.terms]
        logits_CV = _product(inputs_CD[0], weights[0].t())
        for x_CD, weight_VD in zip(inputs_CD[1:], weights[1:], strict=True):
            logits_CV += _product(x_CD, weight_VD.t())
        if self.terms.bias_V is not None:
            logits_CV += self.terms.bias_V
        return logits_CV

    def _capped(self, logits_CV: torch.Tensor) -> torch.Tensor:
        if self.scale != 1.0:
            logits_CV *= self.scale
        return logits_CV if self.softcap is None else logits_CV.div_(self.softcap).tanh_().mul_(self.softcap)


def chunked_log_partition(dense: Dense, hidden_ND: torch.Tensor, *, temperature: float) -> torch.Tensor:
    """Log-sum-exp of logits / temperature, [N]. Its gradient, softmax / temperature, is made anew in the backward."""
    return _Chunked.of(_LogPartition(dense, temperature), hidden_ND)


def gathered_logits(dense: Dense, hidden_ND: torch.Tensor, ids_NK: torch.Tensor) -> torch.Tensor:
    """Logits at K ids per position, [N, K], for K near V."""
    return _Chunked.of(_Gathered(dense, ids_NK), hidden_ND)


class _LogPartition:
    """One number per position."""

    def __init__(self, dense: Dense, temperature: float) -> None:
        self.dense = dense
        self._temperature = temperature

    def forward(self, inputs_CD: Sequence[torch.Tensor], _: slice) -> torch.Tensor:
        return torch.logsumexp(self.dense.logits(inputs_CD).div_(self._temperature), dim=1)

    def grad_of_products(self, inputs_CD: Sequence[torch.Tensor], grad_C: torch.Tensor, _: slice) -> torch.Tensor:
        logits_CV, slope = self.dense.logits_and_slope(inputs_CD)
        probabilities_CV = torch.softmax(logits_CV.div_(self._temperature), dim=1)
        return probabilities_CV.mul_(slope).mul_(grad_C[:, None] / self._temperature)


class _Gathered:
    """K numbers per position, before the scale and the cap."""

    def __init__(self, dense: Dense, ids_NK: torch.Tensor) -> None:
        self.dense = dense
        self._ids_NK = ids_NK

    def forward(self, inputs_CD: Sequence[torch.Tensor], rows: slice) -> torch.Tensor:
        return self.dense.logits(inputs_CD).gather(1, self._ids_NK[rows])

    def grad_of_products(self, inputs_CD: Sequence[torch.Tensor], grad_CK: torch.Tensor, rows: slice) -> torch.Tensor:
        grad_CV = grad_CK.new_zeros(len(inputs_CD[0]), self.dense.terms.size)
        return grad_CV.scatter_add_(1, self._ids_NK[rows], grad_CK)


class _Chunked(torch.autograd.Function):
    """A function of all logits, computed chunk by chunk; its backward computes each chunk's logits again."""

    @staticmethod
    def of(task: _LogPartition | _Gathered, hidden_ND: torch.Tensor) -> torch.Tensor:
        pairs = list(task.dense.terms.inputs(hidden_ND))
        inputs, weights = [x for x, _ in pairs], [weight for _, weight in pairs]
        # Typed by its stubs as taking anything and returning anything.
        values: torch.Tensor = _Chunked.apply(task, task.dense.terms.bias_V, *inputs, *weights)  # type: ignore[no-untyped-call]
        return values

    @staticmethod
    def forward(  # Any: autograd's context has no public type
        ctx: Any, task: _LogPartition | _Gathered, bias_V: torch.Tensor | None, *tensors: torch.Tensor
    ) -> torch.Tensor:
        del bias_V  # among the inputs for its gradient; the task holds it
        ctx.task = task
        inputs = tensors[: len(tensors) // 2]
        ctx.save_for_backward(*tensors)
        return torch.cat([task.forward([x_ND[rows] for x_ND in inputs], rows) for rows in _chunks(task, inputs[0])])

    @staticmethod
    def backward(  # Any: as above
        ctx: Any, grad: torch.Tensor
    ) -> tuple[torch.Tensor | None, ...]:
        task, tensors = ctx.task, ctx.saved_tensors
        inputs, weights = tensors[: len(tensors) // 2], tensors[len(tensors) // 2 :]
        _, needs_bias, *needs = ctx.needs_input_grad
        needs_x, needs_weight = needs[: len(inputs)], needs[len(inputs) :]
        grad_inputs = [torch.empty_like(x) if need else None for x, need in zip(inputs, needs_x, strict=True)]
        grad_weights = [
            torch.zeros_like(weight, dtype=grad.dtype) if need else None
            for weight, need in zip(weights, needs_weight, strict=True)
        ]
        grad_bias_V = grad.new_zeros(task.dense.terms.size) if needs_bias else None
        for rows in _chunks(task, inputs[0]):
            parts = [x_ND[rows] for x_ND in inputs]
            grad_CV = task.grad_of_products(parts, grad[rows], rows)
            for x_CD, weight_VD, grad_x, grad_weight in zip(parts, weights, grad_inputs, grad_weights, strict=True):
                if grad_x is not None:
                    grad_x[rows] = _product(grad_CV, weight_VD).to(grad_x.dtype)
                if grad_weight is not None:
                    grad_weight.addmm_(grad_CV.t(), x_CD.to(grad_CV.dtype))
            if grad_bias_V is not None:
                grad_bias_V += grad_CV.sum(dim=0)
        narrowed = [None if g is None else g.to(weight.dtype) for g, weight in zip(grad_weights, weights, strict=True)]
        return None, grad_bias_V, *grad_inputs, *narrowed


def _product(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """a @ b, added up in fp32 at least and returned so."""
    dtype = torch.promote_types(a.dtype, torch.float32)
    if b.dtype == dtype:
        return a.to(dtype) @ b
    if b.device.type == "cuda":
        product: torch.Tensor = torch.mm(a.to(b.dtype), b, out_dtype=dtype)
        return product
    # A CPU rounds products of half precision to it: widen the matrix, a part at a time.
    a = a.to(dtype)
    if b.stride(0) == 1:
        parts = [a @ part.to(dtype) for part in torch.split(b, _ROWS_WIDENED_AT_ONCE, dim=1)]
        return torch.cat(parts, dim=1)
    total = a.new_zeros(len(a), b.shape[1])
    for start in range(0, len(b), _ROWS_WIDENED_AT_ONCE):
        part = slice(start, start + _ROWS_WIDENED_AT_ONCE)
        total.addmm_(a[:, part], b[part].to(dtype))
    return total


def _chunks(task: _LogPartition | _Gathered, x_ND: torch.Tensor) -> Iterator[slice]:
    size = max(1, CHUNK_ELEMENTS // task.dense.terms.size)
    for start in range(0, len(x_ND), size):
        yield slice(start, start + size)
