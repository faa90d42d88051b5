"""A message of a conversation as JSON writes it. Knows nothing of templates or of servers."""

from __future__ import annotations

from preceptor_client.train.data.examples import ExamplePrompt
from preceptor_client.types import ChatMessage

MessageRow = dict[str, object]


def message_row(message: ChatMessage) -> MessageRow:
    """The message with the keys of OpenAI's chat API."""
    return {"role": message.role, "content": message.content}


def prompt_value(prompt: ExamplePrompt) -> str | list[MessageRow]:
    """The prompt as a data file holds it: a text, or a list of messages."""
    return prompt if isinstance(prompt, str) else [message_row(message) for message in prompt]
