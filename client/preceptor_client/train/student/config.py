"""Settings of the student: which model is trained, and where. Imports no torch."""

from __future__ import annotations

from typing import Literal

from preceptor.settings import Section
from pydantic import Field, JsonValue


class StudentConfig(Section):
    """The model to train."""

    model: str = Field(min_length=1)
    """Folder, or Hugging Face id, of the model to train."""
    gguf_file: str | None = None
    """Name of a GGUF file inside that folder, where the weights are stored as one."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Number format of the weights. bfloat16 is for `preceptor eval` alone: training keeps weights, gradients and
    optimizer in it, where small steps round away."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the student runs; auto takes a GPU where there is one."""
    end_token_ids: tuple[int, ...] = ()
    """Ids that end the student's responses, the one to learn first; empty takes what model and tokenizer say."""
    chat_template: str = ""
    """Name of the chat template to use, where the student's tokenizer has several; empty takes the "default" one."""
    chat_template_kwargs: dict[str, JsonValue] = Field(default_factory=dict)
    """Variables for its chat template, such as {enable_thinking = false}; those of a line of data beat them."""
