"""A teacher's prompt that a part makes, from what the student has just written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
from preceptor_client.train.data.examples import Example, ExamplePrompt
from preceptor_client.train.errors import InvalidPartError
from preceptor_client.train.rollout.episode import Episode
from preceptor_client.train.student.student import Student
from preceptor_client.train.teacher.prompt_source import PROMPTS, PromptMaker, PromptSource
from preceptor_client.types import Chat, ChatMessage, Text

from tests.unit.client.train.objective.episodes import episode


class Attempts:
    """The student's own texts, and how many turns each took."""

    def prompt(self, example: Example, episodes: Sequence[Episode], texts: Sequence[str]) -> ExamplePrompt:
        turns = [int(one.turns_T.max()) + 1 for one in episodes]
        return f"{example.prompt}: {' | '.join(texts)} {turns}"


class Forgetful:
    """Takes no texts."""

    def prompt(self, example: Example, episodes: Sequence[Episode]) -> ExamplePrompt:
        return "a"


def test_a_maker_reads_the_last_turn_of_each_episode_as_text(student: Student) -> None:
    red, blue, end = (student.tokenizer.encode(text) for text in ("red", "blue", "<|im_end|>"))
    episodes = [
        episode(student, ("student", [*red, *end])),
        episode(student, ("student", red), ("environment", red), ("student", [*blue, *end]), sample=1),
    ]
    source = PromptSource(is_one_to_one=True, maker=Attempts(), decode=student.decode)
    question = episodes[0].example.prompt
    assert source.before(episodes) == Text(f"{question}: red | blue [1, 2]")


def said(*contents: str) -> tuple[ChatMessage, ...]:
    return tuple(ChatMessage(role="user", content=content) for content in contents)


@pytest.mark.parametrize(
    ("conversation", "read"),
    [
        pytest.param(said("q", "a turn"), said("hint", "a turn"), id="as-the-example-begins"),
        pytest.param(said("a room", "a turn"), said("hint", "a room", "a turn"), id="as-the-environment-begins"),
    ],
)
def test_the_teachers_own_prompt_stands_for_the_examples_and_for_nothing_else(
    student: Student, conversation: tuple[ChatMessage, ...], read: tuple[ChatMessage, ...]
) -> None:
    example = Example(index=0, prompt=said("q"), teacher_prompt=said("hint"))
    one = replace(episode(student, ("student", [5])), example=example, messages=conversation)
    prompt = PromptSource(is_one_to_one=True).before([one])
    assert isinstance(prompt, Chat)
    assert prompt.messages == read


def test_a_maker_that_takes_no_texts_is_told_so() -> None:
    with pytest.raises(InvalidPartError, match=r"cannot be called as prompt\(self, example.*texts"):
        PROMPTS.make(f"{__name__}:Forgetful", key="teacher.prompt.kind")


def test_protocol_is_met() -> None:
    maker: PromptMaker = Attempts()
    assert PROMPTS.find(f"{__name__}:Attempts", key="teacher.prompt.kind") is type(maker)
