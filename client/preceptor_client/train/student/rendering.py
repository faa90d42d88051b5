"""Renders a conversation through a tokenizer's chat template: the only place of the trainer that does."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from preceptor.json_values import Json

from preceptor_client.train.data.messages import template_message
from preceptor_client.types import ChatMessage


def render_chat(
    tokenizer: Any,  # Any: a tokenizer of transformers, which is not imported here
    messages: Sequence[ChatMessage],
    *,
    tools: Sequence[str] = (),
    template_kwargs: Mapping[str, Json] | None = None,
) -> str:
    """The text of the conversation, followed by the template's opening of an assistant's turn. `tools` are JSON texts.
    Raises whatever the template raises."""
    return str(
        tokenizer.apply_chat_template(
            [template_message(message) for message in messages],
            tools=[json.loads(tool) for tool in tools] or None,
            tokenize=False,
            add_generation_prompt=True,
            **(template_kwargs or {}),
        )
    )
