"""Settings of the measurements on held-out examples. Imports no torch."""

from __future__ import annotations

from preceptor.settings import Section
from pydantic import Field

from preceptor_client.train.data.answer_match import Match
from preceptor_client.train.parts import PartConfig


class EvaluationConfig(Section):
    """How held-out answers are written and judged (they are greedy), and whether the held-out loss is measured."""

    every_steps: int = Field(0, ge=0)
    """Steps between measurements; 0 measures only before the first step and after the last."""
    max_new_tokens: int = Field(32, ge=1)
    """Longest answer, in tokens."""
    match: Match = "starts_with"
    """How an answer must relate to the expected one; case counts, white space around either does not."""
    batch_size: int = Field(32, ge=1)
    """Answers that are written at once."""
    teacher_prompts: bool = False
    """Measure the untrained student with the teacher's prompts too: the mark to reach where both share weights."""
    loss: bool = False
    """Also measure the loss on held-out examples, which then need no answers: each is rolled out once with the
    rollout's settings, by the same draws every time, and scored by the teacher."""
    metrics: tuple[PartConfig, ...] = ()
    """Further measures of the answers, each {kind, options}: a built-in one (match), or package.module:Name of a class
    of your own. Their numbers stand in the held-out row under the names that they give. Where no example has an answer,
    they are all that is measured of the texts."""
