"""The seam for environments: what one is asked for, and what it may answer. One class, named in TOML.

class Guess:
    async def reset(self, example):
        return [{"role": "user", "content": "Guess a number."}]

    async def step(self, text):
        return [{"role": "user", "content": "Higher."}], None, False   # messages, reward, done
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from preceptor_client.train.data.examples import Example
from preceptor_client.train.data.excerpts import excerpt
from preceptor_client.train.data.messages import parse_message, parse_tools
from preceptor_client.train.errors import InvalidDataError, InvalidEpisodeError
from preceptor_client.train.parts import Options, Seam
from preceptor_client.types import ChatMessage

Message = Mapping[str, object] | ChatMessage
"""As the OpenAI API has it: role, content, tool_calls, tool_call_id, name."""
Messages = Sequence[Message]


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """What an environment answers to a turn of the student."""

    messages: Messages = ()
    """What the student reads next; nobody reads them where `done`."""
    reward: float | None = None
    """For the student's turn; an episode's reward is the sum over its turns."""
    reward_if_cut: float | None = None
    """The turn's reward where a limit on turns or tokens ends the episode behind it; None: `reward`."""
    done: bool = False
    """Whether the episode ends here."""
    info: Mapping[str, object] = field(default_factory=dict)
    """What the episode's record should hold; a later turn's entry replaces an earlier one of the same name."""
    assistant: Message | None = None
    """The student's turn as the chat template should be given it, where text is not enough: with `tool_calls`, which
    some templates ask for. By default a message with the text that the student wrote."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckedTurn:
    """A turn that can be gone on from."""

    messages: tuple[ChatMessage, ...]
    reward: float | None
    reward_if_cut: float | None
    done: bool
    info: Mapping[str, object]
    assistant: ChatMessage | None


class Environment(Protocol):
    """One episode's counterpart: made for it, asked by nobody else, and closed with it. Its methods run in a thread of
    its own, so that they may block.

    It may have more. An attribute `tools`, a list of JSON schemas ({"type": "function", "function": {...}}), is read
    after `reset` and given to the chat template; without it, the example's own tools are. A method `async def
    close(self) -> None` frees what it holds, and is called once, however the episode ended."""

    async def reset(self, example: Example) -> Messages:
        """The conversation that the student answers first."""
        ...

    async def step(self, text: str) -> Turn:
        """What follows the student's turn. `text` is all that it wrote, special tokens included, without its end
        token. A tuple (messages, reward, done) does too."""
        ...


MakeEnvironment = Callable[[], Environment]

ENVIRONMENTS: Seam[Environment] = Seam(
    what="an environment",
    protocol=Environment,
    builtins={
        "reasoning_gym": "preceptor_client.train.environment.reasoning_gym:ReasoningGym",
        "textworld": "preceptor_client.train.environment.textworld:TextWorld",
    },
)


def environment_maker(kind: str, options: Options | None = None, *, key: str) -> MakeEnvironment:
    """Makes one environment per call, of the class and with the options that the settings name. One is made at once, to
    see whether it can be: raises InvalidPartError, which begins with `key`."""
    make = ENVIRONMENTS.maker(kind, options, key=key)
    make()
    return make


def prompt_messages(example: Example) -> tuple[ChatMessage, ...]:
    """The example's prompt as a conversation: a text is what a user says."""
    return (ChatMessage(role="user", content=example.prompt),) if isinstance(example.prompt, str) else example.prompt


def without_thoughts(text: str) -> str:
    """What the student wrote behind its thinking (`</think>`), if it thought."""
    return text.rpartition("</think>")[2].strip()


def checked_messages(value: object, *, of: str) -> tuple[ChatMessage, ...]:
    """The messages. Raises InvalidEpisodeError, which begins with `of`, such as "reset()"."""
    if isinstance(value, str | Mapping | ChatMessage) or not isinstance(value, Iterable):
        raise InvalidEpisodeError(
            f"{of} gave {excerpt(value)}: give a list of messages, such as [{{'role': 'user', 'content': 'Go on.'}}]"
        )
    return tuple(_message(message, field=f"{of}: message {number}") for number, message in enumerate(value))


def checked_turn(value: object, *, of: str) -> CheckedTurn:
    """What a step gave, checked. Raises InvalidEpisodeError, which begins with `of`."""
    if isinstance(value, tuple) and len(value) == 3:
        messages, reward, done = value
        value = Turn(messages=messages, reward=reward, done=done)
    if not isinstance(value, Turn):
        raise InvalidEpisodeError(f"{of} gave {excerpt(value)}: give a Turn, or a tuple (messages, reward, done)")
    if not isinstance(value.done, bool | np.bool_):
        raise InvalidEpisodeError(f"{of}: done is {excerpt(value.done)}: give True or False")
    if not isinstance(value.info, Mapping) or not all(isinstance(name, str) for name in value.info):
        raise InvalidEpisodeError(f"{of}: info is {excerpt(value.info)}: give a dict with names as keys")
    messages = checked_messages(value.messages, of=of)
    if not messages and not value.done:
        raise InvalidEpisodeError(f"{of}: no messages, and the episode is not done: give the student something to read")
    return CheckedTurn(
        messages=messages,
        reward=_reward(value.reward, of=of),
        reward_if_cut=_reward(value.reward if value.reward_if_cut is None else value.reward_if_cut, of=of),
        done=bool(value.done),
        info=dict(value.info),
        assistant=None if value.assistant is None else _message(value.assistant, field=f"{of}: assistant"),
    )


def checked_tools(value: object) -> tuple[str, ...]:
    """The tools of an environment, as JSON texts. Raises InvalidEpisodeError."""
    try:
        return parse_tools(value, field="tools")
    except InvalidDataError as error:
        raise InvalidEpisodeError(error.why) from error


def _message(value: object, *, field: str) -> ChatMessage:
    try:
        return parse_message(value, field=field)
    except InvalidDataError as error:
        raise InvalidEpisodeError(error.why) from error


def _reward(value: object, *, of: str) -> float | None:
    """Scalars of numpy and torch are numbers too."""
    if value is None:
        return None
    try:
        if isinstance(value, str):
            raise TypeError("a text")
        # float() is given whatever it takes; what it does not take is told below.
        reward = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError) as error:
        raise InvalidEpisodeError(f"{of}: reward is {excerpt(value)}: give a number or None") from error
    if not math.isfinite(reward):
        raise InvalidEpisodeError(f"{of}: reward is {reward}: give a finite number or None")
    return reward
