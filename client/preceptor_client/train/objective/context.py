"""Defines what a part is told of the current step, beside its episodes."""

from __future__ import annotations

from dataclasses import dataclass

from transformers import PreTrainedTokenizerFast


@dataclass(frozen=True, slots=True, kw_only=True)
class StepContext:
    """The step that is being made."""

    step: int
    """From 1."""
    num_steps: int
    """Steps of the whole run."""
    tokenizer: PreTrainedTokenizerFast
    """The student's."""
    end_token_ids: tuple[int, ...]
    """Ids that end the student's responses."""
