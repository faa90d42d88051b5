"""A conversation as a caller sent it, with JSON that nobody has read, and the reading of it. Knows no protobuf.

Its limits are those of one conversation, whatever the teacher's context: a template may leave out much of what it is
given, so how many tokens a conversation has is known only when it is rendered.
"""

from __future__ import annotations

from dataclasses import dataclass

from preceptor.chat import MAX_TOOLS, Chat, ChatMessage, ToolCall
from preceptor.json_values import JsonObject, read_object

from preceptor_server.errors import InvalidRequestError

FIELD = "prompt.chat"
MAX_MESSAGES = 1 << 14
"""Turns of one conversation."""
MAX_JSON_BYTES = 1 << 22
"""Of all JSON in one conversation: tools, arguments of calls, template arguments. What a template writes of it is part
of the prompt, and objects take a hundred times the room of their text."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SentToolCall:
    """As ToolCall, with the JSON as text."""

    name: str
    arguments: str = ""
    id: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class SentMessage:
    """As ChatMessage."""

    role: str
    content: str = ""
    tool_calls: tuple[SentToolCall, ...] = ()
    tool_call_id: str = ""
    name: str = ""
    reasoning_content: str | None = None

    @property
    def num_characters(self) -> int:
        """But those of calls and of reasoning, which templates leave out of earlier turns."""
        return len(self.role) + len(self.content) + len(self.tool_call_id) + len(self.name)


@dataclass(frozen=True, slots=True, kw_only=True)
class SentChat:
    """As Chat."""

    messages: tuple[SentMessage, ...]
    tools: tuple[str, ...] = ()
    template_arguments: str = ""

    @property
    def num_written(self) -> int:
        """Characters of the messages that a template has to write."""
        return sum(message.num_characters for message in self.messages)

    @property
    def num_json(self) -> int:
        """Characters of JSON."""
        calls = sum(len(call.arguments) for message in self.messages for call in message.tool_calls)
        return calls + sum(map(len, self.tools)) + len(self.template_arguments)

    @property
    def num_characters(self) -> int:
        """All."""
        thoughts = sum(len(message.reasoning_content or "") for message in self.messages)
        return self.num_written + thoughts + self.num_json


def check_num_messages(num_messages: int, *, field: str = FIELD) -> None:
    """Raises InvalidRequestError. To be asked before a conversation is read at all."""
    if not num_messages:
        raise InvalidRequestError(f"{field}.messages", "the prompt is empty")
    if num_messages > MAX_MESSAGES:
        message = f"{num_messages:,} exceed {MAX_MESSAGES:,} messages: send fewer, or the prompt as text"
        raise InvalidRequestError(f"{field}.messages", message, reason="BEYOND_CONTEXT")


def check_sizes(sent: SentChat, *, field: str = FIELD) -> None:
    """Raises InvalidRequestError where there are too many messages or tools, or too much JSON."""
    check_num_messages(len(sent.messages), field=field)
    if len(sent.tools) > MAX_TOOLS:
        raise InvalidRequestError(f"{field}.tools", f"{len(sent.tools)} exceed {MAX_TOOLS} tools: send fewer")
    if sent.num_json > MAX_JSON_BYTES:
        raise InvalidRequestError(
            f"{field}.tools" if sent.tools else f"{field}.messages",
            f"tools and arguments have {sent.num_json:,} characters of JSON, more than {MAX_JSON_BYTES:,}: send less",
        )


def read_chat(sent: SentChat, *, field: str = FIELD) -> Chat:
    """Raises InvalidRequestError where a text is not the JSON that it shall be, naming its field."""
    if len(sent.tools) > MAX_TOOLS:
        raise InvalidRequestError(f"{field}.tools", f"{len(sent.tools)} exceed {MAX_TOOLS} tools: send fewer")
    return Chat(
        messages=tuple(
            _read_message(message, field=f"{field}.messages[{index}]") for index, message in enumerate(sent.messages)
        ),
        tools=tuple(_read_object(text, field=f"{field}.tools[{index}]") for index, text in enumerate(sent.tools)),
        template_arguments=_read_object(sent.template_arguments or "{}", field=f"{field}.template_arguments"),
    )


def _read_message(message: SentMessage, *, field: str) -> ChatMessage:
    return ChatMessage(
        role=message.role,
        content=message.content,
        tool_calls=tuple(
            _read_call(call, field=f"{field}.tool_calls[{index}]") for index, call in enumerate(message.tool_calls)
        ),
        tool_call_id=message.tool_call_id,
        name=message.name,
        reasoning_content=message.reasoning_content,
    )


def _read_call(call: SentToolCall, *, field: str) -> ToolCall:
    if not call.name:
        raise InvalidRequestError(f"{field}.name", "is empty: name the function that was called")
    arguments = _read_object(call.arguments or "{}", field=f"{field}.arguments")
    return ToolCall(name=call.name, arguments=arguments, id=call.id)


def _read_object(text: str, *, field: str) -> JsonObject:
    try:
        return read_object(text)
    except ValueError as error:
        raise InvalidRequestError(field, str(error)) from error
