"""Renders chats in a process of its own, one after another: the teacher's template and then conversations on standard
input, texts or refusals on standard output.

A template is a program and holds the interpreter's lock, and what a caller gives it may make it slow or large. Here it
keeps nobody waiting, and runs under limits that this process sets on itself.
"""

from __future__ import annotations

import json
import os
import resource
import sys
from dataclasses import dataclass
from typing import Any, BinaryIO

from preceptor_server.alignment.chat_template import ChatTemplate
from preceptor_server.alignment.sent_chat import SentChat, SentMessage, SentToolCall, read_chat
from preceptor_server.errors import InvalidRequestError

MAX_ADDRESS_SPACE_BYTES = 2 << 30
"""Memory of this process, what it only reserved included."""
LENGTH_BYTES = 8
TEXT, REFUSAL = b"T", b"R"
TOO_LONG = "TOO_LONG"
"""The reason of a refusal: what the template writes has more bytes than were asked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TemplateOnly:
    """The part of a tokenizer that renders: what transformers does, without the tokenizer."""

    chat_template: str | dict[str, str]
    special_tokens_map: dict[str, Any]  # Any: texts, and lists of texts

    def apply_chat_template(self, conversation: Any, **arguments: Any) -> Any:  # Any: as in transformers
        from transformers.utils.chat_template_utils import render_jinja_template

        del arguments["tokenize"]
        given = {**self.special_tokens_map, **arguments}
        # Any: it returns the texts, and where the assistant's parts lie in them.
        rendered: Any = render_jinja_template(conversations=[conversation], **given)
        return rendered[0][0]


def main() -> None:
    # What a library prints must not end up in the answers.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    for kind, amount in (
        (resource.RLIMIT_AS, MAX_ADDRESS_SPACE_BYTES),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, 0),
    ):
        resource.setrlimit(kind, (amount, amount))
    jobs = sys.stdin.buffer
    start = json.loads(read_frame(jobs))
    template = ChatTemplate(TemplateOnly(**start["tokenizer"]), max_seconds=start["max_seconds"])
    TemplateOnly(chat_template="", special_tokens_map={}).apply_chat_template([], chat_template="", tokenize=False)
    write_frame(answers, b"")  # ready: the library is imported
    while frame := read_frame(jobs):
        write_frame(answers, _answer(template, frame))


def _answer(template: ChatTemplate, frame: bytes) -> bytes:
    try:
        job = json.loads(frame)
        return _render(template, job)
    except InvalidRequestError as refusal:
        message = str(refusal).removeprefix(f"{refusal.field}: ")
        return REFUSAL + json.dumps([refusal.field, message, refusal.reason]).encode()
    except MemoryError:
        message = f"rendering them takes more than {MAX_ADDRESS_SPACE_BYTES >> 30} GiB of memory: send less"
        return REFUSAL + json.dumps(["", message, "BEYOND_CONTEXT"]).encode()


def _render(template: ChatTemplate, job: dict[str, Any]) -> bytes:  # Any: JSON
    field = job["field"]
    chat = read_chat(_sent_chat(job["chat"]), field=field)
    text = template.render(
        [message.as_template_message() for message in chat.messages],
        tools=chat.tools,
        arguments=chat.template_arguments,
        field=f"{field}.messages",
    )
    data = text.encode("utf-8", "surrogatepass")
    if job["max_bytes"] is not None and len(data) > job["max_bytes"]:
        raise InvalidRequestError(f"{field}.messages", f"more than {job['max_bytes']} bytes", reason=TOO_LONG)
    return TEXT + data


def _sent_chat(chat: dict[str, Any]) -> SentChat:  # Any: JSON
    messages = tuple(
        SentMessage(**{**message, "tool_calls": tuple(SentToolCall(**call) for call in message["tool_calls"])})
        for message in chat["messages"]
    )
    return SentChat(messages=messages, tools=tuple(chat["tools"]), template_arguments=chat["template_arguments"])


def read_frame(stream: BinaryIO) -> bytes:
    """The next frame; empty at the end of the stream."""
    length = stream.read(LENGTH_BYTES)
    return stream.read(int.from_bytes(length, "little")) if length else b""


def write_frame(stream: BinaryIO, data: bytes) -> None:
    stream.write(len(data).to_bytes(LENGTH_BYTES, "little"))
    stream.write(data)
    stream.flush()


if __name__ == "__main__":
    main()
