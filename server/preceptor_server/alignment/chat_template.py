"""Renders conversations with a tokenizer's chat template, in bounded time and size. Knows no ids.

A template is a program: with a caller's messages it may fail in any way, or never end. Whatever it does is told as the
caller's mistake, with the template's own words, and the server goes on.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any

import jinja2
from transformers import PreTrainedTokenizerBase

from preceptor_server.errors import InvalidRequestError

MAX_SECONDS = 5.0
"""How long a template may run."""
MAX_CHARACTERS = 1 << 26
"""How much it may write: as much as a message may carry."""
DEFAULT = "default"
"""Of several templates by name, the one that a conversation without tools or documents is for."""
_FILE_OF_TEMPLATES = "<template>"
"""What jinja2 calls the code that it makes of a template given as text."""
_MAX_SAID = 500
"""Characters of an error that are repeated: it travels in metadata, whose size is bounded."""


class TemplateTooLongError(Exception):
    """Raised inside a template that runs for too long."""


class ChatTemplate:
    """The template of one tokenizer, which may have none."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, *, max_seconds: float | None = None) -> None:
        """`max_seconds` defaults to MAX_SECONDS; another is for tests."""
        self._tokenizer = tokenizer
        self._max_seconds = MAX_SECONDS if max_seconds is None else max_seconds
        templates: str | Mapping[str, str] | None = tokenizer.chat_template
        self.text = templates if isinstance(templates, str | None) else templates.get(DEFAULT)
        """None where there is none, and where there are several and none is the default."""
        self.names = () if isinstance(templates, str | None) else tuple(sorted(templates))
        """Of several templates."""

    def render(self, messages: Sequence[Mapping[str, str]], *, field: str) -> str:
        """The conversation, followed by the template's opening of an assistant's turn. Raises InvalidRequestError."""
        if self.text is None:
            raise InvalidRequestError(field, f"{self._why_there_is_none()}: send the prompt as text or ids")
        try:
            with limited(self._max_seconds):
                text = self._tokenizer.apply_chat_template(
                    [dict(message) for message in messages],
                    chat_template=self.text,
                    tokenize=False,
                    add_generation_prompt=True,
                )
        except TemplateTooLongError as error:
            message = f"the teacher's chat template needs more than {self._max_seconds:g} s for these messages"
            raise InvalidRequestError(field, message) from error
        except jinja2.TemplateError as error:
            message = f"the teacher's chat template refuses these messages: {_said(error)}"
            raise InvalidRequestError(field, message) from error
        except Exception as error:  # a template is a program, and fails with whatever its expressions raise
            message = f"the teacher's chat template fails on these messages with {type(error).__name__}: {_said(error)}"
            raise InvalidRequestError(field, message) from error
        return self._checked(text, field=field)

    def _why_there_is_none(self) -> str:
        if not self.names:
            return "this teacher has no chat template"
        return f"this teacher has the chat templates {', '.join(map(repr, self.names))} and none of them is {DEFAULT!r}"

    @staticmethod
    def _checked(text: Any, *, field: str) -> str:  # Any: what the library returns depends on its arguments
        assert isinstance(text, str), "tokenize=False returns text"
        if len(text) > MAX_CHARACTERS:
            message = f"the teacher's chat template writes {len(text):,} characters, more than {MAX_CHARACTERS:,}"
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
