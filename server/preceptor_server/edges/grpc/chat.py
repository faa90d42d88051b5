"""Turns a ChatPrompt into a Chat. Knows no template."""

from __future__ import annotations

from preceptor.chat import MAX_TOOLS, Chat, ChatMessage, ToolCall
from preceptor.json_values import JsonObject, read_object
from preceptor.v1 import teacher_pb2 as pb

from preceptor_server.errors import InvalidRequestError

MESSAGES = "prompt.chat.messages"
_TOOLS = "prompt.chat.tools"
_ARGUMENTS = "prompt.chat.template_arguments"


def decode_chat(sent: pb.ChatPrompt) -> Chat:
    """Raises InvalidRequestError where a text is not the JSON that it shall be, naming its field."""
    if len(sent.tools) > MAX_TOOLS:
        raise InvalidRequestError(_TOOLS, f"{len(sent.tools)} exceed {MAX_TOOLS} tools: send fewer")
    return Chat(
        messages=tuple(
            _decode_message(message, field=f"{MESSAGES}[{index}]") for index, message in enumerate(sent.messages)
        ),
        tools=tuple(_read_object(text, field=f"{_TOOLS}[{index}]") for index, text in enumerate(sent.tools)),
        template_arguments=_read_object(sent.template_arguments or "{}", field=_ARGUMENTS),
    )


def _decode_message(message: pb.ChatMessage, *, field: str) -> ChatMessage:
    return ChatMessage(
        role=message.role,
        content=message.content,
        tool_calls=tuple(
            _decode_call(call, field=f"{field}.tool_calls[{index}]") for index, call in enumerate(message.tool_calls)
        ),
        tool_call_id=message.tool_call_id,
        name=message.name,
        reasoning_content=message.reasoning_content if message.HasField("reasoning_content") else None,
    )


def _decode_call(call: pb.ToolCall, *, field: str) -> ToolCall:
    if not call.name:
        raise InvalidRequestError(f"{field}.name", "is empty: name the function that was called")
    arguments = _read_object(call.arguments or "{}", field=f"{field}.arguments")
    return ToolCall(name=call.name, arguments=arguments, id=call.id)


def _read_object(text: str, *, field: str) -> JsonObject:
    try:
        return read_object(text)
    except ValueError as error:
        raise InvalidRequestError(field, str(error)) from error
