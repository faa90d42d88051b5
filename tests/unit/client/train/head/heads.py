"""Heads of every kind that training knows, and the dense computation that each must equal."""

# N = positions, V = vocabulary, D = hidden size

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from peft.tuners.lora import Linear as LoraLinear
from peft.tuners.lora import LoraConfig
from preceptor_client.train.student.head import Head

NUM_POSITIONS, HIDDEN_SIZE, VOCABULARY_SIZE = 7, 5, 37


def linear(*, bias: bool = False, dtype: torch.dtype = torch.float64, seed: int = 0) -> torch.nn.Linear:
    generator = torch.Generator().manual_seed(seed)
    layer = torch.nn.Linear(HIDDEN_SIZE, VOCABULARY_SIZE, bias=bias, dtype=dtype)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return layer


def with_adapter(base: torch.nn.Linear, *, rank: int = 2) -> Any:  # Any: peft hides the types of what it holds
    """peft's own layer, its second factor not zero."""
    base.requires_grad_(False)
    config = LoraConfig(r=rank, lora_alpha=6)
    layer: Any = LoraLinear(base, "default", config=config, r=rank, lora_alpha=6)
    with torch.no_grad():
        layer.lora_B["default"].weight.normal_(generator=torch.Generator().manual_seed(3))
    adapter: torch.nn.Module = layer.to(base.weight.dtype).eval()
    return adapter


HEADS: dict[str, Callable[[], Head]] = {
    "plain": lambda: Head(module=linear()),
    "bias": lambda: Head(module=linear(bias=True)),
    "scale": lambda: Head(module=linear(bias=True), scale=0.25),
    "softcap": lambda: Head(module=linear(bias=True), softcap=2.0),
    "scale and softcap": lambda: Head(module=linear(bias=True), scale=3.0, softcap=1.5),
    "LoRA": lambda: Head(module=with_adapter(linear(bias=True))),
    "LoRA, scale and softcap": lambda: Head(module=with_adapter(linear()), scale=3.0, softcap=1.5),
}


def dense_logits(head: Head, hidden_ND: torch.Tensor) -> torch.Tensor:
    """What the module itself computes, and then what its model does to it."""
    logits_NV: torch.Tensor = head.module(hidden_ND) * head.scale
    return logits_NV if head.softcap is None else torch.tanh(logits_NV / head.softcap) * head.softcap


def hidden_states(*, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    states = torch.randn(NUM_POSITIONS, HIDDEN_SIZE, generator=generator, dtype=torch.float64).to(dtype)
    return states.requires_grad_()


def trained(head: Head, hidden_ND: torch.Tensor) -> list[torch.Tensor]:
    """Everything that gets a gradient."""
    return [hidden_ND, *(parameter for parameter in head.module.parameters() if parameter.requires_grad)]
