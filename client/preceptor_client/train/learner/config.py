"""Settings of the optimizer. Imports no torch."""

from __future__ import annotations

from typing import Annotated

from preceptor.settings import Section
from pydantic import Field

_Decay = Annotated[float, Field(ge=0, lt=1)]


class OptimizerConfig(Section):
    """AdamW, and how a step is cut into pieces that fit memory."""

    learning_rate: float = Field(gt=0)
    """Learning rate, constant after the warm-up."""
    betas: tuple[_Decay, _Decay] = (0.9, 0.95)
    """Decay of AdamW's two moving averages."""
    weight_decay: float = Field(0.0, ge=0)
    """Decoupled weight decay."""
    gradient_clip: float = Field(1.0, gt=0)
    """Largest norm of the gradient of a step."""
    micro_batch_size: int = Field(16, ge=1)
    """Responses per forward and backward; changes memory and speed, not the loss."""
    warmup_steps: int = Field(0, ge=0)
    """Steps over which the learning rate rises linearly from 0."""
