"""Settings of the rollouts: how the student writes. Imports no torch."""

from __future__ import annotations

from preceptor.settings import Section
from pydantic import Field


class RolloutConfig(Section):
    """How the student writes."""

    prompts_per_step: int = Field(ge=1)
    """Prompts per optimizer step."""
    max_new_tokens: int = Field(ge=1)
    """Longest response, in tokens; longer ones are cut, and trained on up to there."""
    responses_per_prompt: int = Field(1, ge=1)
    """Responses to each prompt of a step."""
    top_p: float = Field(0.9, gt=0, le=1)
    """Nucleus of the student's distribution that tokens are drawn from."""
    temperature: float = Field(1.0, gt=0, le=100)
    """Divides the student's logits before tokens are drawn."""
    batch_size: int = Field(16, ge=1)
    """Responses that are written at once; the teacher scores one batch while the next is written."""
