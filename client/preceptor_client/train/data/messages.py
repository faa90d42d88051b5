"""Messages of a conversation: reads the dicts that data files and environments give.

A message is what the OpenAI API calls one: role, content, tool_calls, tool_call_id, name, and reasoning_content. Knows
nothing of templates or of tokenizers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from preceptor.json_values import MAX_JSON_DEPTH, JsonObject, object_text, plain_object, read_object
from preceptor.template_inputs import RESERVED

from preceptor_client.train.data.excerpts import excerpt, excerpt_around
from preceptor_client.train.data.reading import Number
from preceptor_client.train.errors import InvalidDataError
from preceptor_client.types import ChatMessage, ToolCall

MESSAGE_KEYS = ("role", "content", "tool_calls", "tool_call_id", "name", "reasoning_content")
_CALL_KEYS = {"id", "type", "function"}


def parse_message(value: object, *, field: str) -> ChatMessage:
    """The message. Raises InvalidDataError, which begins with `field`."""
    if isinstance(value, ChatMessage):
        return value
    if not isinstance(value, Mapping) or "role" not in value or not set(value) <= set(MESSAGE_KEYS):
        others = ", ".join(MESSAGE_KEYS[2:])
        raise InvalidDataError(
            f"{field} must be {{'role': text, 'content': text}}, and may have {others}, nothing else; it is "
            f"{excerpt(value)}"
        )
    calls = tuple(_tool_calls(value.get("tool_calls"), field=f"{field}: its tool_calls"))
    content, reasoning = value.get("content"), value.get("reasoning_content")
    return ChatMessage(
        role=_member(value["role"], name="role", field=field),
        content="" if content is None and calls else _member(content, name="content", field=field),
        tool_calls=calls,
        tool_call_id=_optional(value, "tool_call_id", field=field),
        name=_optional(value, "name", field=field),
        reasoning_content=None if reasoning is None else _member(reasoning, name="reasoning_content", field=field),
    )


def parse_tools(value: object, *, field: str) -> tuple[str, ...]:
    """The tools, one JSON text each; none for None. Raises InvalidDataError, which begins with `field`."""
    if value is None:
        return ()
    if not isinstance(value, list | tuple):
        raise InvalidDataError(f"{field} must be a list of JSON schemas of functions; it is {excerpt(value)}")
    return tuple(_tool(tool, field=f"{field} number {number}") for number, tool in enumerate(value))


def parse_template_kwargs(value: object, *, field: str) -> JsonObject:
    """Variables for a chat template. Raises InvalidDataError, which begins with `field`."""
    if value is None:
        return {}
    plain = parse_object(value, field=field)
    for name in plain:
        if not name.isidentifier() or name in RESERVED:
            raise InvalidDataError(
                f"{field}: {excerpt(name)} is no variable of a chat template that can be set: take it out"
            )
    return plain


def parse_object(value: object, *, field: str) -> JsonObject:
    """A JSON object in plain dicts, lists, texts and numbers. Raises InvalidDataError, which begins with `field`."""
    try:
        return plain_object(_with_numbers(value))
    except ValueError as error:
        raise InvalidDataError(f"{field} {error}; it is {excerpt(value)}") from error


def parse_text(text: str, *, field: str) -> str:
    """The text itself, which tokenizers and UTF-8 can hold. Raises InvalidDataError, which begins with `field`."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InvalidDataError(
            f"{field} holds half a character (a lone surrogate, \\u{ord(text[error.start]):04x}) at character "
            f"{error.start + 1} ({excerpt_around(text, error.start)}): write the whole character, or take it out"
        ) from error
    return text


def _member(value: object, *, name: str, field: str) -> str:
    if not isinstance(value, str):
        raise InvalidDataError(f"{field}: its {name} must be a text (no list of parts); it is {excerpt(value)}")
    return parse_text(value, field=f"{field}: its {name}")


def _optional(value: Mapping[str, object], name: str, *, field: str) -> str:
    found = value.get(name)
    return "" if found is None else _member(found, name=name, field=field)


def _tool_calls(value: object, *, field: str) -> Iterator[ToolCall]:
    if value is None:
        return
    if not isinstance(value, list | tuple):
        raise InvalidDataError(f"{field} must be a list; it is {excerpt(value)}")
    for number, call in enumerate(value):
        yield call if isinstance(call, ToolCall) else _tool_call(call, field=f"{field}: number {number}")


def _tool_call(value: object, *, field: str) -> ToolCall:
    function = value.get("function") if isinstance(value, Mapping) and set(value) <= _CALL_KEYS else None
    if not isinstance(value, Mapping) or not isinstance(function, Mapping) or not {*function} <= {"name", "arguments"}:
        raise InvalidDataError(
            f"{field} must be {{'type': 'function', 'function': {{'name': text, 'arguments': object}}}}, and may have "
            f"an 'id'; it is {excerpt(value)}"
        )
    name = _member(function.get("name"), name="name", field=field)
    if not name:
        raise InvalidDataError(f"{field}: its name is empty: name the function that was called")
    return ToolCall(
        name=name,
        arguments=_arguments(function.get("arguments"), field=f"{field}: its arguments"),
        id=_optional(value, "id", field=field),
    )


def _arguments(value: object, *, field: str) -> JsonObject:
    """An object, or its JSON as the OpenAI API has it."""
    if not isinstance(value, str):
        return parse_object({} if value is None else value, field=field)
    try:
        return read_object(value)
    except ValueError as error:
        raise InvalidDataError(f"{field}: {error}; they are {excerpt(value)}") from error


def _tool(value: object, *, field: str) -> str:
    tool = _tool_object(value, field=field)
    function = tool.get("function")
    if tool.get("type") != "function" or not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise InvalidDataError(
            f"{field} must be {{'type': 'function', 'function': {{'name': text, 'description': text, 'parameters': "
            f"JSON schema}}}}; it is {excerpt(value)}"
        )
    try:
        return object_text(tool)
    except ValueError as error:
        raise InvalidDataError(f"{field} {error}") from error


def _tool_object(value: object, *, field: str) -> JsonObject:
    """As an object, or as its JSON."""
    if not isinstance(value, str):
        return parse_object(value, field=field)
    try:
        return read_object(value)
    except ValueError as error:
        raise InvalidDataError(f"{field}: {error}; it is {excerpt(value)}") from error


def _with_numbers(value: object, *, depth: int = 0) -> object:
    """The same with the numbers of a file as numbers."""
    if isinstance(value, Number):
        return _number(value.text)
    if depth > MAX_JSON_DEPTH:
        return value  # refused for its depth, by who reads it next
    if isinstance(value, Mapping):
        return {key: _with_numbers(item, depth=depth + 1) for key, item in value.items()}
    return [_with_numbers(item, depth=depth + 1) for item in value] if isinstance(value, list | tuple) else value


def _number(text: str) -> int | float:
    """Raises ValueError for an integer of more digits than Python reads."""
    return float(text) if any(sign in text for sign in ".eE") else int(text)
