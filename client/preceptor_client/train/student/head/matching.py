"""Finds what a model does to its logits after the output matrix, by giving it products of known size."""

# T = tokens, V = vocabulary, D = hidden size

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import product

import torch
from transformers import PreTrainedModel

from preceptor_client.train.errors import InvalidStudentError
from preceptor_client.train.student.head.body import logits_for, output_head, states_before_head
from preceptor_client.train.student.head.head import Head
from preceptor_client.train.student.head.terms import terms_of

TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-4}
"""Largest share of the logits' range by which they may differ from the model's own."""
HALF_TOLERANCE = 2e-2
"""The same where the model rounds its logits to bf16 or fp16."""
_NUM_PROBED = 8
_LARGE = 1e4
"""Above every soft cap; its logits are the cap, where there is one."""
_STEEP = 100.0
"""The products that are tried span this much to either side: where a soft cap bends."""


@torch.no_grad()
def head_of(model: PreTrainedModel) -> Head:
    """The head that reproduces the model's logits from the states that its output matrix is given. Raises
    InvalidStudentError where none does."""
    module = output_head(model)
    size = terms_of(module).size
    ids_1T = torch.arange(_NUM_PROBED, device=next(model.parameters()).device).unsqueeze(0) % size
    tolerance = TOLERANCE.get(model.dtype, HALF_TOLERANCE)
    steep_TV = torch.linspace(-_STEEP, _STEEP, _NUM_PROBED * size, device=ids_1T.device).view(_NUM_PROBED, size)
    bent_TV = logits_for(model, ids_1T, steep_TV).float()
    # As the model's dtype rounds them.
    steep_TV = steep_TV.to(model.dtype).float()
    hidden_TD = states_before_head(model, ids_1T)[0]
    logits_TV = model(ids_1T, use_cache=False).logits[0].float()
    for head in _candidates(model, module, ids_1T):
        matches_shape = _is_close(head.transformed(steep_TV), bent_TV, tolerance=tolerance)
        if matches_shape and _is_close(head.logits(hidden_TD).float(), logits_TV, tolerance=tolerance):
            return head
    raise InvalidStudentError(
        f"student.model: {type(model).__name__} changes its logits after the head in a way that training does not "
        "reproduce: a scale and a soft cap are known, and neither fits"
    )


def _candidates(model: PreTrainedModel, module: torch.nn.Module, ids_1T: torch.Tensor) -> Iterator[Head]:
    """A scale, a soft cap, both or none: as measured, and before that the config's own number where it is the same up
    to rounding."""
    size = terms_of(module).size

    def logit_of(value: float) -> float:
        products_TV = torch.full((_NUM_PROBED, size), value, device=ids_1T.device)
        return float(logits_for(model, ids_1T, products_TV)[0, 0])

    # A soft cap bends the logit of 1 by a third of its inverse square: the slope is measured far below.
    scale, largest = logit_of(2.0**-10) * 2.0**10, logit_of(_LARGE)
    is_capped = abs(largest) < abs(scale) * _LARGE / 2
    named = list(_numbers(model.config.get_text_config().to_dict()))
    scales = [*_named_as(scale, [1.0, *named, *(1 / value for value in named)], dtype=model.dtype), scale]
    caps = [*_named_as(largest, named, dtype=model.dtype), largest] if is_capped else [None]
    for factor, cap in product(scales, caps):
        yield Head(module=module, scale=factor, softcap=cap)


def _named_as(measured: float, named: list[float], *, dtype: torch.dtype) -> list[float]:
    """Those of the named numbers that were measured, the nearest first."""
    rounding = 8 * torch.finfo(dtype).eps
    near = {value for value in named if abs(value - measured) <= rounding * abs(measured)}
    return sorted(near, key=lambda value: abs(value - measured))


def _numbers(config: Mapping[str, object]) -> Iterator[float]:
    for value in config.values():
        if isinstance(value, int | float) and not isinstance(value, bool) and value:
            yield float(value)


def _is_close(ours_TV: torch.Tensor, theirs_TV: torch.Tensor, *, tolerance: float) -> bool:
    if ours_TV.shape != theirs_TV.shape:
        return False
    # Not `difference > ...`: a NaN is no agreement.
    return bool((ours_TV - theirs_TV).abs().max() <= tolerance * theirs_TV.abs().max())
