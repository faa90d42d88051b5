"""One episode's conversation as tokens: what the student wrote is never tokenized again.

After a turn of the student the whole conversation is rendered through its chat template. Where that text begins with
what the student has read and written, only the rest is tokenized, and appended. Where it does not, the template has
rewritten history, and `rollout.on_rewritten_history` says how the episode goes on. Knows nothing of environments.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from preceptor.json_values import Json
from transformers import PreTrainedTokenizerFast

from preceptor_client.errors import PreceptorError
from preceptor_client.train.data.excerpts import message_of
from preceptor_client.train.errors import InvalidEpisodeError
from preceptor_client.train.rollout.config import OnRewrittenHistory
from preceptor_client.train.rollout.engine import Written
from preceptor_client.train.rollout.episode import Segment
from preceptor_client.train.student.rendering import render_chat
from preceptor_client.types import ChatMessage

_PLACEHOLDER = "preceptor-stands-for-a-turn"
_OPENED_THOUGHT = re.compile(r"<think>\s*\Z")
"""A generation prompt that begins the student's thinking for it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Template:
    """The student's chat template, with what it is given beside the messages."""

    tokenizer: PreTrainedTokenizerFast
    num_ids: int
    """The student's model knows the ids below."""
    tools: tuple[str, ...] = ()
    kwargs: Mapping[str, Json] = field(default_factory=dict)

    def render(self, messages: Sequence[ChatMessage]) -> str:
        """Raises InvalidEpisodeError where the template refuses them."""
        if not self.tokenizer.chat_template:
            raise InvalidEpisodeError(
                "an environment talks in messages, and the student's tokenizer has no chat template: put a template "
                "into the student's folder"
            )
        try:
            return render_chat(self.tokenizer, messages, tools=self.tools, template_kwargs=self.kwargs)
        except (PreceptorError, MemoryError):
            raise
        except Exception as error:
            raise InvalidEpisodeError(
                f"the student's chat template refuses its messages: {message_of(error)}"
            ) from error

    def encode(self, text: str) -> list[int]:
        """Of a text that a template wrote, special tokens included. Raises InvalidEpisodeError for a token that the
        student's model does not know."""
        ids: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        if (largest := max(ids, default=0)) >= self.num_ids:
            raise InvalidEpisodeError(
                f"its messages have token {self.tokenizer.convert_ids_to_tokens(largest)!r} (id {largest}), and the "
                f"student's model has rows for ids below {self.num_ids}: add rows to the model "
                "(resize_token_embeddings), or keep the token out of the messages"
            )
        return ids

    def encode_after(self, last_id: int, text: str) -> list[int]:
        """Of a text that follows a token. A special token goes in front of it, and is taken off: some of them swallow
        white space behind them, and some tokenizers open a text with a space."""
        added = self.tokenizer.added_tokens_decoder
        if last_id in added and added[last_id].special:
            ids = self.encode(f"{added[last_id].content}{text}")
            if ids[:1] == [last_id]:
                return ids[1:]
        return self.encode(text)

    def decode_after(self, last_id: int, ids: Sequence[int]) -> str:
        """The text of ids that follow a token, special tokens included: some decoders drop a first space."""
        head, whole = self._decode([last_id]), self._decode([last_id, *ids])
        return whole[len(head) :] if whole.startswith(head) else self._decode(ids)

    def _decode(self, ids: Sequence[int]) -> str:
        text = self.tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)
        assert isinstance(text, str)
        return text


@dataclass(slots=True, kw_only=True)
class Part:
    """Tokens that go on from one prompt."""

    prompt_ids: tuple[int, ...]
    messages: tuple[ChatMessage, ...]
    """What the prompt renders."""
    segments: list[Segment] = field(default_factory=list)
    rewards: list[float | None] = field(default_factory=list)
    """One for each segment."""
    ids: list[int]
    """The prompt and the segments."""
    has_ended: bool = False
    """Whether the student's last turn has an end token."""
    rewritten_at_turn: int | None = None
    """The student's turn, from 0, before which history was rewritten first."""


class Conversation:
    """Turn by turn: `add_turn` with what the student wrote, then `add_messages` with what it reads next."""

    def __init__(
        self,
        messages: Sequence[ChatMessage],
        *,
        template: Template,
        end_token_ids: Sequence[int],
        on_rewritten_history: OnRewrittenHistory,
    ) -> None:
        """Raises InvalidEpisodeError, here as everywhere, for what the template refuses."""
        self._template = template
        self._end_token_ids = frozenset(end_token_ids)
        self._on_rewritten_history = on_rewritten_history
        self._messages = list(messages)
        self._num_turns = 0
        self._is_masked = False
        self.parts: list[Part] = []
        self._last_turn: tuple[Part, int]
        """The part and the segment of the student's last turn."""
        self._text = ""
        self._begin_part(template.render(messages))

    @property
    def ids(self) -> tuple[int, ...]:
        """What the student reads before its next token."""
        return tuple(self.parts[-1].ids)

    def add_turn(self, written: Written) -> str:
        """Appends a turn of the student; returns its text, special tokens included, without the end token."""
        part = self.parts[-1]
        last_id = part.ids[-1]
        part.has_ended = written.ids[-1] in self._end_token_ids
        without_end = written.ids[:-1] if part.has_ended else written.ids
        text = self._template.decode_after(last_id, without_end)
        opened = _OPENED_THOUGHT.search(self._text)
        self._messages.append(ChatMessage(role="assistant", content=(opened.group() if opened else "") + text))
        self._text += self._template.decode_after(last_id, written.ids)
        self._append(Segment(ids=written.ids, is_policy=True, is_masked=self._is_masked, student=written.student))
        self._last_turn = part, len(part.segments) - 1
        self._num_turns += 1
        return text

    def reward_turn(self, reward: float | None) -> None:
        """Of the student's last turn."""
        part, place = self._last_turn
        part.rewards[place] = reward

    def replace_turn(self, message: ChatMessage) -> None:
        """The student's last turn as the template should be given it."""
        self._messages[-1] = message

    def add_messages(self, messages: Sequence[ChatMessage]) -> None:
        """Appends what the student reads next, and the template's opening of its turn."""
        before = list(self._messages)
        self._messages += messages
        rendered = self._template.render(self._messages)
        if rendered.startswith(self._text) and not self._is_masked:
            self._read(self._template.encode_after(self.parts[-1].ids[-1], rendered[len(self._text) :]))
            self._text = rendered
        elif self._on_rewritten_history == "rerender":
            self._begin_part(rendered)
        else:
            self._go_on_masked(before, messages)

    def _begin_part(self, rendered: str) -> None:
        ids = self._template.encode(rendered)
        if not ids:
            raise InvalidEpisodeError("the student's chat template makes no tokens of its messages")
        self.parts.append(
            Part(
                prompt_ids=tuple(ids),
                messages=tuple(self._messages),
                ids=ids,
                rewritten_at_turn=self._num_turns if self.parts else None,
            )
        )
        self._text = rendered

    def _go_on_masked(self, before: Sequence[ChatMessage], messages: Sequence[ChatMessage]) -> None:
        """Appends what the template writes behind a turn that has nothing to rewrite, from its end token on; the
        student's own end token takes that one's place."""
        part = self.parts[-1]
        if not self._is_masked:
            self._is_masked, part.rewritten_at_turn = True, self._num_turns
        plain = replace(before[-1], content=_PLACEHOLDER, reasoning_content=None)
        rendered = self._template.render([*before[:-1], plain, *messages])
        _, found, rest = rendered.rpartition(_PLACEHOLDER)
        if not found:
            raise InvalidEpisodeError(
                "the student's chat template leaves out what it wrote in its last turn: set "
                "rollout.on_rewritten_history=rerender"
            )
        last_id = part.ids[-1]
        if part.has_ended:
            ids = self._template.encode(rest)
            ids = ids[1:] if ids[:1] and ids[0] in self._end_token_ids else self._template.encode_after(last_id, rest)
        else:
            ids = self._template.encode_after(last_id, rest)
        self._read(ids)
        opening = _OPENED_THOUGHT.search(rendered)
        self._text = opening.group() if opening else ""

    def _read(self, ids: Sequence[int]) -> None:
        if ids:
            self._append(Segment(ids=tuple(ids), is_policy=False))

    def _append(self, segment: Segment) -> None:
        part = self.parts[-1]
        part.segments.append(segment)
        part.rewards.append(None)
        part.ids += segment.ids
