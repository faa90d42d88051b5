"""Reads prompts of every kind into the teacher's ids: what is small at once, all else on the workbench, by turns.

Whoever calls it is in the event loop. A prompt that certainly does not fit is refused before it costs anything, a text
or ids that may fit are never refused unread. Knows neither protobuf nor HTTP.
"""

from __future__ import annotations

from typing import Protocol

from preceptor.wire import TokenArray

from preceptor_server.alignment.chat_template import TemplateTooLongError
from preceptor_server.alignment.prompts import read_prompt
from preceptor_server.alignment.render_worker import TOO_LONG
from preceptor_server.alignment.segmenter import Segmenter
from preceptor_server.alignment.sent_chat import FIELD, SentChat, check_sizes, read_chat
from preceptor_server.alignment.teacher_tokenizer import TeacherTokenizer
from preceptor_server.alignment.too_long import too_long
from preceptor_server.alignment.types import Alignment
from preceptor_server.alignment.workbench import Turn, Workbench
from preceptor_server.errors import InvalidRequestError

INLINE_CHARACTERS = 1 << 12
"""A text up to it is tokenized in the event loop: 1 to 2 ms."""
INLINE_IDS = 1 << 10
"""A student's prompt up to it is."""
INLINE_CHAT_CHARACTERS = 1 << 12
INLINE_MESSAGES = 32
"""A conversation up to both is rendered in the event loop, for at most INLINE_SECONDS: mostly below 1 ms."""
INLINE_SECONDS = 0.01
_BYTES_PER_ID = 16
"""What reading an id costs, beside reading a byte of text."""
_MESSAGE_BYTES = 256
"""What a message costs to render, beside its text."""


class RendersChats(Protocol):
    """What RenderProcess does; it blocks."""

    def render(self, chat: SentChat, *, max_bytes: int | None, field: str, turn: Turn) -> str: ...

    def start(self) -> None: ...

    def close(self) -> None: ...


class PromptReader:
    """One teacher's. `room_tokens` is always how many of the teacher's tokens the prompt may have: of its context, what
    the responses leave; `caller_key` is whose turn it takes. What it raises: InvalidRequestError with the field (reason
    BEYOND_CONTEXT where the prompt does not fit), QueueFullError, DeadlinePassedError."""

    def __init__(
        self,
        tokenizer: TeacherTokenizer,
        *,
        workbench: Workbench,
        segmenter: Segmenter | None = None,
        renderer: RendersChats | None = None,
    ) -> None:
        """`segmenter` is the aligner's; `renderer` defaults to a process of its own, another is for tests."""
        self._tokenizer = tokenizer
        self._workbench = workbench
        self._segmenter = segmenter
        self._renderer = renderer or tokenizer.build_renderer()

    async def start(self) -> None:
        """Starts the process that renders, so that the first large conversation does not wait for it."""
        if self._renderer is not None:
            renderer = self._renderer
            await self._workbench.run(lambda _: renderer.start(), caller_key="", num_bytes=0)

    def close(self) -> None:
        """Ends that process."""
        if self._renderer is not None:
            self._renderer.close()

    async def read_text(
        self,
        text: str,
        *,
        add_special_tokens: bool,
        room_tokens: int,
        caller_key: str,
        timeout_seconds: float | None = None,
        field: str = "prompt.text.text",
    ) -> TokenArray:
        """Ids of a text, as TeacherTokenizer.encode."""
        if not text:
            raise InvalidRequestError(field, "the prompt is empty")

        return await self._encode(
            text,
            add_special_tokens=add_special_tokens,
            room_tokens=room_tokens,
            caller_key=caller_key,
            timeout_seconds=timeout_seconds,
            field=field,
        )

    async def read_chat(
        self,
        chat: SentChat,
        *,
        room_tokens: int,
        caller_key: str,
        timeout_seconds: float | None = None,
        field: str = FIELD,
    ) -> TokenArray:
        """Ids of a conversation in the teacher's own template. `field` is what the conversation is called in errors.

        A conversation is refused unread where it has more messages than there is room for tokens, or more text, but
        that of reasoning and calls, than that many of the longest tokens hold: templates write at least that."""
        check_sizes(chat, field=field)
        messages = f"{field}.messages"
        if len(chat.messages) > room_tokens:
            raise too_long(messages, room_tokens)
        self._refuse_what_is_too_long(chat.num_written, room_tokens, field=messages)
        if _is_small(chat):
            text = self._render_at_once(chat, field=field)
            if text is not None:
                return await self._encode(
                    text,
                    add_special_tokens=False,  # the template writes those that it wants
                    room_tokens=room_tokens,
                    caller_key=caller_key,
                    timeout_seconds=timeout_seconds,
                    field=messages,
                )

        def read(turn: Turn) -> TokenArray:
            text = self._render(chat, room_tokens, field=field, turn=turn)
            return self._tokenizer.encode(
                text, add_special_tokens=False, field=messages, room_tokens=room_tokens, check=turn.check
            )

        num_bytes = chat.num_characters + _MESSAGE_BYTES * len(chat.messages)
        return await self._workbench.run(
            read, caller_key=caller_key, num_bytes=num_bytes, timeout_seconds=timeout_seconds
        )

    async def read_student_ids(
        self,
        ids_P: TokenArray,
        alignment: Alignment,
        *,
        room_tokens: int,
        caller_key: str,
        timeout_seconds: float | None = None,
        field: str = "prompt.student_ids",
    ) -> TokenArray:
        """A prompt in a student's ids, all of its vocabulary, in the teacher's ids, as read_prompt."""
        segmenter = self._segmenter
        assert segmenter is not None, "an alignment comes from the teacher's aligner"

        def read(turn: Turn) -> TokenArray:
            return read_prompt(
                ids_P,
                alignment,
                tokenizer=self._tokenizer,
                segmenter=segmenter,
                field=field,
                room_tokens=room_tokens,
                check=turn.check,
            )

        if len(ids_P) <= INLINE_IDS:
            return read(Turn())
        num_bytes = _BYTES_PER_ID * len(ids_P)
        return await self._workbench.run(
            read, caller_key=caller_key, num_bytes=num_bytes, timeout_seconds=timeout_seconds
        )

    async def _encode(
        self,
        text: str,
        *,
        add_special_tokens: bool,
        room_tokens: int,
        caller_key: str,
        timeout_seconds: float | None,
        field: str,
    ) -> TokenArray:
        def encode(turn: Turn) -> TokenArray:
            return self._tokenizer.encode(
                text, add_special_tokens=add_special_tokens, field=field, room_tokens=room_tokens, check=turn.check
            )

        if len(text) <= INLINE_CHARACTERS:
            return encode(Turn())
        self._refuse_what_is_too_long(len(text), room_tokens, field=field)
        return await self._workbench.run(
            encode, caller_key=caller_key, num_bytes=len(text), timeout_seconds=timeout_seconds
        )

    def _refuse_what_is_too_long(self, num_characters: int, room_tokens: int, *, field: str) -> None:
        longest = self._tokenizer.bound.longest_bytes
        if longest and num_characters > longest * room_tokens:
            raise too_long(field, room_tokens)

    def _render_at_once(self, chat: SentChat, *, field: str) -> str | None:
        """For the event loop; None where the template takes longer than a moment."""
        try:
            return self._render_here(chat, field=field, max_seconds=INLINE_SECONDS)
        except InvalidRequestError as error:
            if isinstance(error.__cause__, TemplateTooLongError):
                return None
            raise

    def _render(self, chat: SentChat, room_tokens: int, *, field: str, turn: Turn) -> str:
        """For the workbench."""
        if self._renderer is None:
            return self._render_here(chat, field=field, max_seconds=None)
        longest = self._tokenizer.bound.longest_bytes
        max_bytes = longest * room_tokens if longest else None
        try:
            return self._renderer.render(chat, max_bytes=max_bytes, field=field, turn=turn)
        except InvalidRequestError as error:
            if error.reason != TOO_LONG:
                raise
            raise too_long(f"{field}.messages", room_tokens) from error

    def _render_here(self, chat: SentChat, *, field: str, max_seconds: float | None) -> str:
        read = read_chat(chat, field=field)
        return self._tokenizer.template.render(
            [message.as_template_message() for message in read.messages],
            tools=read.tools,
            arguments=read.template_arguments,
            field=f"{field}.messages",
            max_seconds=max_seconds,
        )


def _is_small(chat: SentChat) -> bool:
    """Numbers among the template's arguments may be what it counts to or repeats by."""
    has_numbers = any(character.isdigit() for character in chat.template_arguments)
    return len(chat.messages) <= INLINE_MESSAGES and chat.num_characters <= INLINE_CHAT_CHARACTERS and not has_numbers
