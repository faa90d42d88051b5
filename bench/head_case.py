"""The data of one point of the benches of the head: sizes, and tensors of that size."""

# N = positions, K = support size, V = vocabulary, D = hidden size

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace

import torch

BYTES = {"float32": 4, "bfloat16": 2}
"""Of a number."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """Sizes. The defaults are those of SmolLM2-135M, and of the targets."""

    num_positions: int = 4096
    support_size: int = 32
    vocabulary_size: int = 49_152
    hidden_size: int = 576
    device: str = "cpu"
    dtype: str = "float32"
    """Of hidden states and matrix."""

    @property
    def weight_bytes(self) -> int:
        """Of the matrix, and of its gradient, which every way has to make."""
        return BYTES[self.dtype] * self.vocabulary_size * self.hidden_size

    @property
    def dense_bytes(self) -> int:
        """About what a process of the dense way holds: all logits, the matrix, and the gradients of both."""
        return 2 * BYTES[self.dtype] * self.num_positions * self.vocabulary_size + 2 * self.weight_bytes

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @staticmethod
    def from_json(text: str) -> Case:
        return Case(**json.loads(text))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Inputs:
    """What every way is given; not every way uses all of it. Hidden states and matrix take gradients."""

    hidden_ND: torch.Tensor
    head: torch.nn.Linear
    ids_NK: torch.Tensor
    """Distinct in their row, and uniform over the vocabulary: a real support hits fewer rows of the matrix, which only
    helps the sparse way."""
    teacher_logprobs_NK: torch.Tensor
    teacher_hidden_ND: torch.Tensor
    """For the ways that compute the teacher's logits themselves; of the student's width."""
    teacher_weight_VD: torch.Tensor

    def first(self, num_positions: int) -> Inputs:
        """The same matrices with fewer positions."""
        rows = slice(num_positions)
        return replace(
            self,
            hidden_ND=self.hidden_ND.detach()[rows].clone().requires_grad_(),
            ids_NK=self.ids_NK[rows],
            teacher_logprobs_NK=self.teacher_logprobs_NK[rows],
            teacher_hidden_ND=self.teacher_hidden_ND[rows],
        )


def inputs_of(case: Case, *, with_teacher: bool = False) -> Inputs:
    """The same numbers on every call. The teacher's matrices are empty unless asked for."""
    generator = torch.Generator().manual_seed(0)
    place = (case.device, getattr(torch, case.dtype))
    shape_NK = (case.num_positions, case.support_size)
    head = torch.nn.Linear(case.hidden_size, case.vocabulary_size, bias=False)
    with torch.no_grad():
        # Logits of variance 1 at hidden states of variance 1.
        head.weight.copy_(_normal(generator, case.vocabulary_size, case.hidden_size) / case.hidden_size**0.5)
    teacher_sizes = (case.num_positions, case.vocabulary_size) if with_teacher else (0, 0)
    return Inputs(
        hidden_ND=_normal(generator, case.num_positions, case.hidden_size).to(*place).requires_grad_(),
        head=head.to(*place),
        ids_NK=_supports(case, generator).to(case.device),
        # Renormalised, as what is outside the support cancels.
        teacher_logprobs_NK=_normal(generator, *shape_NK).log_softmax(dim=1).to(case.device),
        teacher_hidden_ND=_normal(generator, teacher_sizes[0], case.hidden_size).to(*place),
        teacher_weight_VD=(_normal(generator, teacher_sizes[1], case.hidden_size) / case.hidden_size**0.5).to(*place),
    )


def _supports(case: Case, generator: torch.Generator) -> torch.Tensor:
    """Cuts the vocabulary into K equal parts, draws one token of each for every position, and mixes them up."""
    part = case.vocabulary_size // case.support_size
    shape_NK = (case.num_positions, case.support_size)
    ids_NK = torch.arange(case.support_size) * part + torch.randint(part, shape_NK, generator=generator)
    return ids_NK.gather(1, torch.rand(shape_NK, generator=generator).argsort(dim=1))


def _normal(generator: torch.Generator, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=generator)
