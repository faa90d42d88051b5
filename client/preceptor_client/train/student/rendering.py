"""Renders a conversation through a tokenizer's chat template: the only place of the trainer that does."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from preceptor.json_values import Json
from preceptor.template_inputs import TemplateInputs, refuse_unread
from preceptor.template_names import TemplateNames, names_in

from preceptor_client.types import Chat, ChatMessage

_TEMPLATE = "the student's chat template"


def render_chat(
    tokenizer: Any,  # Any: a tokenizer of transformers, which is not imported here
    messages: Sequence[ChatMessage],
    *,
    tools: Sequence[str] = (),
    template_kwargs: Mapping[str, Json] | None = None,
) -> str:
    """The text of the conversation, followed by the template's opening of an assistant's turn. `tools` are JSON texts.
    Raises TemplateInputError where the template would leave tools, variables, calls or reasoning out in silence, and
    whatever the template itself raises."""
    chat = Chat(
        tuple(messages), tools=tuple(json.loads(tool) for tool in tools), template_arguments=template_kwargs or {}
    )
    inputs = TemplateInputs(
        messages=[message.as_template_message() for message in messages],
        tools=[dict(tool) for tool in chat.tools],
        arguments=dict(chat.template_arguments),
        field="messages",
    )
    if chat.has_chat_arguments and (names := _names_of(tokenizer)):
        refuse_unread(inputs, names, special_tokens=tokenizer.special_tokens_map, template=_TEMPLATE)
    return str(
        tokenizer.apply_chat_template(
            inputs.messages,
            tools=inputs.tools or None,
            tokenize=False,
            add_generation_prompt=True,
            **inputs.arguments,
        )
    )


def _names_of(tokenizer: Any) -> TemplateNames | None:
    """What its template reads; None without a template, which transformers tells of."""
    template = tokenizer.chat_template
    return names_in(template) if isinstance(template, str) else None
