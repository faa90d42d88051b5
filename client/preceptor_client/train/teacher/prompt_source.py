"""Chooses a teacher's prompt for an episode: the student's, the example's own for it, or one that a part makes."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from preceptor.json_values import Json

from preceptor_client.train.data.examples import Example, ExamplePrompt
from preceptor_client.train.errors import InvalidDataError, InvalidPartError
from preceptor_client.train.parts import Seam
from preceptor_client.train.rollout.episode import Episode
from preceptor_client.types import Chat, ChatMessage, Prompt, StudentIds, Text


class PromptMaker(Protocol):
    """Makes a teacher's prompt when an episode is scored. One class, named in TOML: teacher.prompt.kind =
    "package.module:Name"."""

    def prompt(self, example: Example, episodes: Sequence[Episode], texts: Sequence[str]) -> ExamplePrompt:
        """A text or a conversation, for the episodes of one prompt; they are scored as its continuations. `texts` are
        what the student wrote in the last turn of each, without special tokens."""
        ...


PROMPTS: Seam[PromptMaker] = Seam(what="a maker of the teacher's prompts", protocol=PromptMaker, builtins={})


class PromptSource:
    """Says what one teacher reads."""

    def __init__(
        self,
        *,
        is_one_to_one: bool,
        teacher: str = "",
        maker: PromptMaker | None = None,
        decode: Callable[[Sequence[int]], str] | None = None,
        chat_template_kwargs: Mapping[str, Json] | None = None,
    ) -> None:
        """`is_one_to_one` says whether the student's ids stand for the teacher's; `teacher` is its name in the
        settings, by which an example may give it a prompt; `decode` gives the text of the student's ids, for the maker;
        `chat_template_kwargs` are variables for the teacher's chat template, those of an example beat them."""
        self._is_one_to_one = is_one_to_one
        self._teacher = teacher
        self._maker = maker
        self._decode = decode
        self._chat_template_kwargs = dict(chat_template_kwargs or {})

    def before(self, episodes: Sequence[Episode]) -> Prompt:
        """For episodes of one prompt. Raises InvalidPartError where the maker fails, and InvalidDataError where what
        the example gives the teacher cannot go on as the episode does."""
        first = episodes[0]
        if self._maker is None:
            return self._of(first.example, prompt_ids=first.prompt_ids, messages=first.messages, tools=first.tools)
        assert self._decode is not None, "a maker of prompts reads what was written"
        texts = [self._decode(episode.last_turn_ids) for episode in episodes]
        try:
            made = self._maker.prompt(first.example, episodes, texts)
        except Exception as error:
            raise InvalidPartError(f"teacher.prompt: {type(self._maker).__name__}.prompt failed: {error!r}") from error
        return self._rendered(_checked(made, maker=self._maker), first.example, tools=first.tools)

    def own_prompt(self, example: Example) -> ExamplePrompt | None:
        """What the example gives this teacher to read instead of the student's prompt."""
        return example.prompt_of(self._teacher)

    def of_example(self, example: Example) -> Prompt | None:
        """Before anything is written; None where that is made later."""
        return None if self._maker else self._of(example, prompt_ids=(), messages=(), tools=())

    def _of(
        self,
        example: Example,
        *,
        prompt_ids: Sequence[int],
        messages: tuple[ChatMessage, ...],
        tools: tuple[str, ...],
    ) -> Prompt:
        own = self.own_prompt(example)
        if own is None:
            if self._is_one_to_one:
                return StudentIds(prompt_ids)
            return self._rendered(messages or example.prompt, example, tools=tools)
        if not messages:
            return self._rendered(own, example, tools=tools)
        return self._rendered(_continued(own, example=example, messages=messages), example, tools=tools)

    def _rendered(self, prompt: ExamplePrompt, example: Example, *, tools: tuple[str, ...]) -> Prompt:
        if isinstance(prompt, str):
            return Text(prompt)
        return Chat(
            prompt,
            tools=tuple(json.loads(tool) for tool in tools or example.tools),
            template_arguments={**self._chat_template_kwargs, **example.teacher_chat_template_kwargs},
        )


def _continued(own: ExamplePrompt, *, example: Example, messages: tuple[ChatMessage, ...]) -> tuple[ChatMessage, ...]:
    """The teacher's own prompt, and what was said after the student's; all of a conversation that an environment began
    otherwise."""
    opening = () if isinstance(example.prompt, str) else example.prompt
    said = messages[len(opening) :] if messages[: len(opening)] == opening else messages
    if isinstance(own, str):
        raise InvalidDataError(
            "its teacher_prompt is a text, and the episode goes on after a turn: give a list of messages",
            where=example.name,
        )
    return (*own, *said)


def _checked(made: object, *, maker: PromptMaker) -> ExamplePrompt:
    if isinstance(made, str) and made:
        return made
    if isinstance(made, Sequence) and made and all(isinstance(message, ChatMessage) for message in made):
        return tuple(made)
    raise InvalidPartError(
        f"teacher.prompt: {type(maker).__name__}.prompt must return a text or a sequence of ChatMessage; it gave "
        f"{repr(made)[:80]}"
    )
