"""Settings of the measurements on held-out examples. Imports no torch."""

from __future__ import annotations

from typing import Literal

from preceptor.settings import Section
from pydantic import Field


class EvaluationConfig(Section):
    """How held-out answers are written and judged (they are greedy), and whether the held-out loss is measured."""

    every_steps: int = Field(0, ge=0)
    """Steps between measurements; 0 measures only before the first step and after the last."""
    max_new_tokens: int = Field(32, ge=1)
    """Longest answer, in tokens."""
    match: Literal["starts_with", "contains", "exact"] = "starts_with"
    """How an answer must relate to the expected one; case counts, white space around either does not."""
    batch_size: int = Field(32, ge=1)
    """Answers that are written at once."""
    teacher_prompts: bool = False
    """Measure the untrained student with the teacher's prompts too: the mark to reach where both share weights."""
    loss: bool = False
    """Also measure the loss on held-out examples, which then need no answers: each is rolled out once with the
    rollout's settings, by the same draws every time, and scored by the teacher."""
