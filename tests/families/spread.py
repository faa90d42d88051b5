"""Random weights of which each matters: families start some at zero, at one, or so small that no mistake would show."""

from __future__ import annotations

import torch

from tests.families.small import SPREAD

_SMALL = 0.1
"""Matrices with a smaller deviation are drawn again."""
_NUDGE = 0.1
"""Deviation of what is added to vectors: norms stay near one, biases near zero, and none is either."""


@torch.no_grad()
def spread_weights(model: torch.nn.Module, *, spread: float = SPREAD) -> None:
    """Draws flat matrices again, and nudges vectors (norms, biases, sinks, decay rates)."""
    for parameter in model.parameters():
        if not parameter.is_floating_point():
            continue
        if parameter.ndim < 2:
            parameter.add_(torch.randn_like(parameter), alpha=_NUDGE)
        elif not float(parameter.std()) >= _SMALL:  # also where it is NaN
            parameter.normal_(0, spread)
