"""A conversation as both sides hold it, and as a Hugging Face chat template reads it. Knows no template, no protobuf.

Server and trainer render the same dicts, so that student and teacher read the same turns.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from preceptor.json_values import Json, JsonObject, plain_object

MAX_TOOLS = 1024
"""Tools of one conversation."""


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call of a tool that an assistant made in an earlier turn."""

    name: str
    arguments: Mapping[str, Json] = field(default_factory=dict, hash=False)
    """A JSON object. Not part of the hash: mappings have none."""
    id: str = ""
    """What the answering tool message repeats as `tool_call_id`; empty = none."""


@dataclass(frozen=True, slots=True)
class ChatMessage:
    """One turn of a conversation."""

    role: str
    content: str = ""
    """May be empty where the turn is nothing but calls of tools."""
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str = ""
    """In a tool's turn: the call that it answers; empty = none."""
    name: str = ""
    """Of the speaker, or of the tool that answers; empty = none."""
    reasoning_content: str | None = None
    """What the assistant thought before `content`; None = absent, which templates tell from an empty text."""

    def as_template_message(self) -> JsonObject:
        """The dict that `apply_chat_template` of transformers takes. `content` is always there; what is empty or None
        otherwise is absent. Raises ValueError where the arguments of a call are not JSON."""
        message: JsonObject = {"role": self.role, "content": self.content}
        if self.reasoning_content is not None:
            message["reasoning_content"] = self.reasoning_content
        if self.tool_calls:
            message["tool_calls"] = [_template_call(call) for call in self.tool_calls]
        if self.tool_call_id:
            message["tool_call_id"] = self.tool_call_id
        if self.name:
            message["name"] = self.name
        return message


@dataclass(frozen=True, slots=True)
class Chat:
    """A prompt rendered with the teacher's own chat template, followed by its opening of an assistant's turn."""

    messages: tuple[ChatMessage, ...]
    tools: tuple[Mapping[str, Json], ...] = field(default=(), hash=False)
    """What the assistant may call, each a JSON object: {"type": "function", "function": {"name", "description",
    "parameters": JSON schema}}."""
    template_arguments: Mapping[str, Json] = field(default_factory=dict, hash=False)
    """Further variables of the template, such as {"enable_thinking": False}."""

    @property
    def has_chat_arguments(self) -> bool:
        """Whether it says anything beyond roles and contents: what a teacher needs Capabilities.chat_arguments for."""
        return bool(self.tools or self.template_arguments) or any(
            message.tool_calls or message.tool_call_id or message.name or message.reasoning_content is not None
            for message in self.messages
        )


def _template_call(call: ToolCall) -> JsonObject:
    named: JsonObject = {"id": call.id} if call.id else {}
    function: JsonObject = {"name": call.name, "arguments": plain_object(call.arguments)}
    return {"type": "function", **named, "function": function}
