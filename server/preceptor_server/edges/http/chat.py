"""A body's conversation as one that nobody has read."""

from __future__ import annotations

import json

from preceptor_server.alignment.sent_chat import SentChat, SentMessage, SentToolCall
from preceptor_server.edges.http.requests import Message, PromptBody, ToolCallBody


def to_chat(body: PromptBody) -> SentChat:
    """The conversation of a prompt that has messages. Whether its texts are JSON is seen when they are read."""
    return SentChat(
        messages=tuple(map(_to_message, body.messages)),
        tools=tuple(map(json.dumps, body.tools)),
        template_arguments=json.dumps(body.chat_template_kwargs) if body.chat_template_kwargs else "",
    )


def _to_message(message: Message) -> SentMessage:
    return SentMessage(
        role=message.role,
        content=message.content or "",
        tool_calls=tuple(map(_to_call, message.tool_calls)),
        tool_call_id=message.tool_call_id,
        name=message.name,
        reasoning_content=message.reasoning_content,
    )


def _to_call(call: ToolCallBody) -> SentToolCall:
    arguments = call.function.arguments
    text = arguments if isinstance(arguments, str) else json.dumps(arguments)
    return SentToolCall(id=call.id, name=call.function.name, arguments=text)
