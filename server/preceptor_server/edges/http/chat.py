"""A body's conversation as a Chat."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping

from preceptor.chat import Chat, ChatMessage, ToolCall
from preceptor.json_values import JsonObject, object_text, read_object
from pydantic import JsonValue

from preceptor_server.edges.http.requests import Message, PromptBody, ToolCallBody
from preceptor_server.errors import InvalidRequestError

_MESSAGES = "prompt.chat.messages"
"""As the wire calls it: `problems.py` has the body's names."""


def to_chat(body: PromptBody) -> Chat:
    """The conversation of a prompt that has messages. Raises InvalidRequestError, naming the wire's field, where a text
    is not the JSON object that it shall be, or an object is too deep or too long."""
    return Chat(
        messages=tuple(_to_message(message, f"{_MESSAGES}[{index}]") for index, message in enumerate(body.messages)),
        tools=tuple(_checked(tool, f"prompt.chat.tools[{index}]") for index, tool in enumerate(body.tools)),
        template_arguments=_checked(body.chat_template_kwargs, "prompt.chat.template_arguments"),
    )


def num_characters(chat: Chat) -> int:
    """Of all that a template may write."""
    return sum(map(len, _texts(chat)))


def _texts(chat: Chat) -> Iterator[str]:
    yield from map(object_text, chat.tools)
    if chat.template_arguments:
        yield object_text(chat.template_arguments)
    for message in chat.messages:
        yield from (message.role, message.content, message.reasoning_content or "")
        for call in message.tool_calls:
            yield from (call.name, object_text(call.arguments))


def _to_message(message: Message, field: str) -> ChatMessage:
    return ChatMessage(
        role=message.role,
        content=message.content or "",
        tool_calls=tuple(
            _to_call(call, f"{field}.tool_calls[{index}]") for index, call in enumerate(message.tool_calls)
        ),
        tool_call_id=message.tool_call_id,
        name=message.name,
        reasoning_content=message.reasoning_content,
    )


def _to_call(call: ToolCallBody, field: str) -> ToolCall:
    arguments, name = call.function.arguments, f"{field}.arguments"
    if isinstance(arguments, str):
        return ToolCall(id=call.id, name=call.function.name, arguments=_read(arguments or "{}", name))
    assert isinstance(arguments, dict), "the body's model lets nothing else pass"
    return ToolCall(id=call.id, name=call.function.name, arguments=_checked(arguments, name))


def _checked(value: Mapping[str, JsonValue], field: str) -> JsonObject:
    """Within the bounds of a text that the wire carries."""
    return _read(json.dumps(value), field)


def _read(text: str, field: str) -> JsonObject:
    try:
        return read_object(text)
    except ValueError as error:
        raise InvalidRequestError(field, str(error)) from error
