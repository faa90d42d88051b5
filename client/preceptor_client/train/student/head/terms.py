"""Takes a head apart into products that add up: the matrix itself, and one narrow product per LoRA adapter."""

# N = positions, V = vocabulary, D = hidden size (of an adapter: its rank)

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, cast

import torch

from preceptor_client.train.errors import InvalidStudentError


@dataclass(frozen=True, slots=True, eq=False)
class Term:
    """One product: into(hidden) @ weight.T."""

    weight_VD: torch.Tensor
    into: Callable[[torch.Tensor], torch.Tensor] | None = None
    """None takes the hidden states as they are."""


@dataclass(frozen=True, slots=True, eq=False)
class Terms:
    """All products of a head, and its bias."""

    terms: tuple[Term, ...]
    bias_V: torch.Tensor | None

    @property
    def size(self) -> int:
        return self.terms[0].weight_VD.shape[0]

    def inputs(self, hidden_ND: torch.Tensor) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """What each matrix is multiplied with, and the matrix."""
        for term in self.terms:
            yield (term.into(hidden_ND) if term.into else hidden_ND), term.weight_VD


class _LoraLinear(Protocol):
    """What is read of peft's `lora.Linear`, by its own names."""

    base_layer: torch.nn.Linear
    lora_A: Mapping[str, torch.nn.Linear]
    lora_B: Mapping[str, torch.nn.Linear]
    lora_dropout: Mapping[str, torch.nn.Module]
    lora_variant: Mapping[str, object]
    scaling: Mapping[str, float]
    active_adapters: Sequence[str]
    disable_adapters: bool
    merged: bool


class _TrainedWhole(Protocol):
    """What is read of peft's wrapper for `modules_to_save`."""

    original_module: torch.nn.Module
    modules_to_save: Mapping[str, torch.nn.Module]
    active_adapters: Sequence[str]
    disable_adapters: bool


def terms_of(module: torch.nn.Module) -> Terms:
    """A Linear is one product; peft's `lora.Linear` adds one per active adapter. Raises InvalidStudentError for a head
    that is something else."""
    if hasattr(module, "modules_to_save"):
        module = _in_use(cast(_TrainedWhole, module))
    if isinstance(module, torch.nn.Linear):
        return Terms((Term(module.weight),), module.bias)
    if not hasattr(module, "lora_A") or not isinstance(getattr(module, "base_layer", None), torch.nn.Linear):
        raise InvalidStudentError(f"the student's output head is a {type(module).__name__}, training needs a Linear")
    lora = cast(_LoraLinear, module)
    is_off = lora.disable_adapters or lora.merged
    adapters = [name for name in lora.active_adapters if name in lora.lora_A and not is_off]
    if any(name in lora.lora_variant for name in adapters):
        raise InvalidStudentError("the student's head has a variant of LoRA (DoRA, aLoRA): use plain LoRA on the head")
    if any(lora.lora_B[name].bias is not None for name in adapters):
        raise InvalidStudentError("the student's head has LoRA factors with a bias: set lora_bias=False")
    return Terms((Term(lora.base_layer.weight), *(_adapter(lora, name) for name in adapters)), lora.base_layer.bias)


def _in_use(wrapper: _TrainedWhole) -> torch.nn.Module:
    """Of a head that peft trains whole, the copy in use."""
    names = [name for name in wrapper.active_adapters if name in wrapper.modules_to_save]
    return wrapper.modules_to_save[names[0]] if names and not wrapper.disable_adapters else wrapper.original_module


def _adapter(lora: _LoraLinear, name: str) -> Term:
    factor, dropout, scaling = lora.lora_A[name], lora.lora_dropout[name], lora.scaling[name]

    def into(hidden_ND: torch.Tensor) -> torch.Tensor:
        narrow: torch.Tensor = factor(dropout(hidden_ND.to(factor.weight.dtype))) * scaling
        return narrow

    return Term(lora.lora_B[name].weight, into)
