"""Runs a model up to its output head: the states that its head is given, whatever class or wrapper the body is.

Asks the head's module what it was given, so that no list of families is needed: multimodal wrappers, models whose head
has a norm or a projection of its own before it, models without a named body.
"""

# B = sequences, T = tokens, V = vocabulary, D = hidden size

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from transformers import PreTrainedModel

from preceptor_client.train.errors import InvalidStudentError


def output_head(model: PreTrainedModel) -> torch.nn.Module:
    """The module that makes the logits. Raises InvalidStudentError for a model without one."""
    module = model.get_output_embeddings()
    if not isinstance(module, torch.nn.Module):
        raise InvalidStudentError(f"student.model: {type(model).__name__} has no output head, which training needs")
    return module


def states_before_head(model: PreTrainedModel, ids_BT: torch.Tensor, **options: object) -> torch.Tensor:
    """What the head is given for every token, [B, T, D], with gradients; `options` are those of the model's forward.
    The logits of one token are computed and dropped."""
    given: list[torch.Tensor] = []

    def take(_: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        given.append(inputs[0])
        return (inputs[0][:1, :1], *inputs[1:])

    with _hooked(output_head(model).register_forward_pre_hook(take)):
        model(ids_BT, **({"use_cache": False} | options))
    if len(given) != 1 or given[0].shape[:2] != ids_BT.shape:
        raise InvalidStudentError(
            f"student.model: {type(model).__name__} does not give each token's state to its output head once, which "
            "training needs: take another model"
        )
    return given[0]


@torch.no_grad()
def logits_for(model: PreTrainedModel, ids_1T: torch.Tensor, products_TV: torch.Tensor) -> torch.Tensor:
    """The logits that the model makes of these products of its head, [T, V]."""

    def give(_: torch.nn.Module, __: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
        return products_TV[None].to(output)

    with _hooked(output_head(model).register_forward_hook(give)):
        logits_TV: torch.Tensor = model(ids_1T, use_cache=False).logits[0]
    return logits_TV


@contextmanager
def _hooked(handle: torch.utils.hooks.RemovableHandle) -> Iterator[None]:
    try:
        yield
    finally:
        handle.remove()
