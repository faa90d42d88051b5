"""Renders conversations with a tokenizer's chat template, in bounded time and size. Knows no ids.

A template is a program: with a caller's messages it may fail in any way, or never end. Whatever it does is told as the
caller's mistake, with the template's own words, and the server goes on.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from types import FrameType
from typing import Any, Protocol

import jinja2
from preceptor.json_values import Json
from preceptor.template_inputs import TemplateInputError, TemplateInputs, refuse_unread
from preceptor.template_names import names_in

from preceptor_server.errors import InvalidRequestError

MAX_SECONDS = 5.0
"""How long a template may run."""
_CULPRIT_SECONDS = 1.0
"""How long it may run again, to find out which part it fails on."""
MAX_CHARACTERS = 1 << 26
"""How much it may write: as much as a message may carry."""
DEFAULT = "default"
"""Of several templates by name, the one that a conversation without tools or documents is for."""
TOOL_USE = "tool_use"
"""Of several templates by name, the one that transformers takes for a conversation with tools."""
_FILE_OF_TEMPLATES = "<template>"
"""What jinja2 calls the code that it makes of a template given as text."""
_TEMPLATE = "the teacher's chat template"
_MAX_SAID = 500
"""Characters of an error that are repeated: it travels in metadata, whose size is bounded."""


class TemplateTooLongError(Exception):
    """Raised inside a template that runs for too long."""


class WritesChats(Protocol):
    """What a tokenizer of transformers has to do with chats."""

    # Any: the library's own types, which differ between its versions.
    @property
    def chat_template(self) -> Any: ...

    @property
    def special_tokens_map(self) -> Any: ...

    @property
    def apply_chat_template(self) -> Any: ...


class ChatTemplate:
    """The template of one tokenizer, which may have none."""

    def __init__(self, tokenizer: WritesChats, *, max_seconds: float | None = None) -> None:
        """`max_seconds` defaults to MAX_SECONDS; another is for tests."""
        self._tokenizer = tokenizer
        self._max_seconds = MAX_SECONDS if max_seconds is None else max_seconds
        templates: str | Mapping[str, str] | None = tokenizer.chat_template
        self.text = templates if isinstance(templates, str | None) else templates.get(DEFAULT)
        """None where there is none, and where there are several and none is the default."""
        self.text_with_tools = self.text if isinstance(templates, str | None) else templates.get(TOOL_USE, self.text)
        """What a conversation with tools is rendered with; None as for `text`."""
        self.names = () if isinstance(templates, str | None) else tuple(sorted(templates))
        """Of several templates."""

    def render(
        self,
        messages: Sequence[Mapping[str, Json]],
        *,
        field: str,
        tools: Sequence[Mapping[str, Json]] = (),
        arguments: Mapping[str, Json] | None = None,
        max_seconds: float | None = None,
    ) -> str:
        """What `apply_chat_template(messages, tools=tools, add_generation_prompt=True, **arguments)` writes: the
        conversation, followed by the template's opening of an assistant's turn. `field` is what the messages are called
        in errors; the others are called `tools` and `template_arguments` beside it. Raises InvalidRequestError, also
        where the template would never read something that was given. `max_seconds` is for a caller with less time; that
        it was too little is the error's cause, a TemplateTooLongError."""
        seconds = self._max_seconds if max_seconds is None else max_seconds
        chat = TemplateInputs(
            messages=[dict(message) for message in messages],
            tools=[dict(tool) for tool in tools],
            arguments=dict(arguments or {}),
            field=field,
        )
        text = self.text_with_tools if chat.tools else self.text
        if text is None:
            raise InvalidRequestError(field, f"{self._why_there_is_none()}: send the prompt as text or ids")
        try:
            refuse_unread(chat, names_in(text), special_tokens=self._tokenizer.special_tokens_map, template=_TEMPLATE)
            written = self._apply(text, chat, seconds=seconds)
        except TemplateInputError as error:
            raise InvalidRequestError(error.field, error.message) from error
        except TemplateTooLongError as error:
            message = f"{_TEMPLATE} needs more than {seconds:g} s for these messages"
            raise InvalidRequestError(field, message) from error
        except jinja2.TemplateError as error:
            culprit, these = self._culprit(text, chat)
            message = f"{_TEMPLATE} refuses these {these}: {_said(error)}"
            raise InvalidRequestError(culprit, message) from error
        except Exception as error:  # a template is a program, and fails with whatever its expressions raise
            culprit, these = self._culprit(text, chat)
            message = f"{_TEMPLATE} fails on these {these} with {type(error).__name__}: {_said(error)}"
            raise InvalidRequestError(culprit, message) from error
        return self._checked(written, field=field)

    def _apply(
        self, text: str, chat: TemplateInputs, *, seconds: float
    ) -> Any:  # Any: what the library returns depends on its arguments
        # Any: the library's types are narrower than what it takes.
        given: dict[str, Any] = {"conversation": chat.messages, "tools": chat.tools or None, **chat.arguments}
        with limited(seconds):
            return self._tokenizer.apply_chat_template(
                **given, chat_template=text, tokenize=False, add_generation_prompt=True
            )

    def _culprit(self, text: str, chat: TemplateInputs) -> tuple[str, str]:
        """Field and name of the part without which the template does not fail; else the messages."""
        for without, field, name in (
            (replace(chat, tools=[]), chat.tools_field, "tools"),
            (replace(chat, arguments={}), chat.arguments_field, "template arguments"),
        ):
            if without == chat:
                continue
            try:
                self._apply(text, without, seconds=min(_CULPRIT_SECONDS, self._max_seconds))
            except Exception:  # noqa: BLE001  a template is a program; the caller tells its first error
                continue
            return field, name
        return chat.field, "messages"

    def _why_there_is_none(self) -> str:
        if not self.names:
            return "this teacher has no chat template"
        return f"this teacher has the chat templates {', '.join(map(repr, self.names))} and none of them is {DEFAULT!r}"

    @staticmethod
    def _checked(text: Any, *, field: str) -> str:  # Any: as above
        assert isinstance(text, str), "tokenize=False returns text"
        if len(text) > MAX_CHARACTERS:
            message = f"{_TEMPLATE} writes {len(text):,} characters, more than {MAX_CHARACTERS:,}"
            raise InvalidRequestError(field, message)
        return text


@contextmanager
def limited(seconds: float) -> Iterator[None]:
    """Raises TemplateTooLongError inside a template of this thread that still runs after so many seconds.

    A template repeats only what stands in its own code (its sandbox bounds ranges, Python its recursion), so to look at
    the clock at each of its lines is enough; the code of libraries runs unwatched.
    """
    deadline = time.monotonic() + seconds

    def watch(frame: FrameType, _event: str, _argument: object) -> Any:  # Any: a function like this one
        if frame.f_code.co_filename != _FILE_OF_TEMPLATES:
            return None
        if time.monotonic() > deadline:
            raise TemplateTooLongError
        return watch

    before = sys.gettrace()
    sys.settrace(watch)
    try:
        yield
    finally:
        sys.settrace(before)


def _said(error: BaseException) -> str:
    text = str(error)
    return text if len(text) <= _MAX_SAID else f"{text[:_MAX_SAID]}..."
