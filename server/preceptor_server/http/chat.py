"""A body's conversation as the wire carries it. Whether its texts are JSON is seen when they are decoded."""

from __future__ import annotations

import json
from collections.abc import Iterator

from preceptor.v1 import teacher_pb2 as pb

from preceptor_server.http.requests import Message, PromptBody, ToolCallBody


def to_chat(body: PromptBody) -> pb.ChatPrompt:
    """The conversation of a prompt that has messages."""
    return pb.ChatPrompt(
        messages=[_to_message(message) for message in body.messages],
        tools=[json.dumps(tool) for tool in body.tools],
        template_arguments=json.dumps(body.chat_template_kwargs) if body.chat_template_kwargs else "",
    )


def num_characters(chat: pb.ChatPrompt) -> int:
    """Of all that a template may write."""
    return sum(map(len, _texts(chat)))


def _to_message(message: Message) -> pb.ChatMessage:
    return pb.ChatMessage(
        role=message.role,
        content=message.content or "",
        tool_calls=[_to_call(call) for call in message.tool_calls],
        tool_call_id=message.tool_call_id,
        name=message.name,
        reasoning_content=message.reasoning_content,
    )


def _to_call(call: ToolCallBody) -> pb.ToolCall:
    arguments = call.function.arguments
    text = arguments if isinstance(arguments, str) else json.dumps(arguments)
    return pb.ToolCall(id=call.id, name=call.function.name, arguments=text)


def _texts(chat: pb.ChatPrompt) -> Iterator[str]:
    yield from chat.tools
    yield chat.template_arguments
    for message in chat.messages:
        yield from (message.role, message.content, message.reasoning_content)
        for call in message.tool_calls:
            yield from (call.name, call.arguments)
