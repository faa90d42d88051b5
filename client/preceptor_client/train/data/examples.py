"""Defines an example, and deals examples out to steps. Knows nothing of files, tokenizers or models."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from preceptor.json_values import Json

from preceptor_client.train.errors import InvalidDataError
from preceptor_client.types import ChatMessage

ExamplePrompt = str | tuple[ChatMessage, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """One thing to practise, or to be measured on."""

    index: int
    """Its place among the rows of its source."""
    where: str = field(default="", compare=False)
    """The same for people, such as "train.jsonl:17"."""
    prompt: ExamplePrompt
    teacher_prompt: ExamplePrompt | None = None
    """What the teacher reads instead of the student's prompt."""
    teacher_prompts: Mapping[str, ExamplePrompt] = field(default_factory=dict, hash=False)
    """The same for single teachers, by their names in the settings."""
    answer: str | None = None
    other_answers: tuple[str, ...] = ()
    """What is as right as `answer`."""
    task: str = ""
    """What it belongs to, in metrics and plots; empty where all examples are of one kind."""
    tools: tuple[str, ...] = ()
    """What the student may call, and the teacher may read about: one JSON object each, as chat templates take them."""
    chat_template_kwargs: Mapping[str, Json] = field(default_factory=dict, hash=False)
    """Variables for the student's chat template, such as {"enable_thinking": False}; they beat those of the run."""
    teacher_chat_template_kwargs: Mapping[str, Json] = field(default_factory=dict, hash=False)
    """The same for the teacher's."""
    extra: Mapping[str, Any] = field(default_factory=dict, hash=False)  # Any: JSON whose shape its reader knows
    """The row's other keys, for parts of a user's own: a rubric, test cases. Empty unless data.extra_fields is keep."""

    @property
    def name(self) -> str:
        """For messages."""
        return self.where or f"example {self.index}"

    def prompt_of(self, teacher: str) -> ExamplePrompt | None:
        """What the teacher of this name reads instead of the student's prompt; None where it reads that."""
        return self.teacher_prompts.get(teacher, self.teacher_prompt)

    @property
    def answers(self) -> tuple[str, ...]:
        """Every answer that is right; none where the example has none."""
        return () if self.answer is None else (self.answer, *self.other_answers)


class PromptStream:
    """Deals examples out to steps. A pure function of the seed and the step: a resumed run needs no cursor.

    Every epoch is a fresh permutation, every example is dealt once per epoch, and a step may span two epochs.
    """

    def __init__(self, examples: Sequence[Example], *, prompts_per_step: int, seed: int) -> None:
        if not examples:
            raise InvalidDataError("there are no examples to train on")
        self._examples = examples
        self._prompts_per_step = prompts_per_step
        self._seed = seed
        self._permutations: dict[int, list[int]] = {}

    def step(self, step: int) -> list[Example]:
        """The examples of a step; steps count from 1."""
        return self.deal((step - 1) * self._prompts_per_step, self._prompts_per_step)

    def deal(self, first: int, count: int) -> list[Example]:
        """So many examples from the one on that has this number, counted over all epochs."""
        return [self._example_at(position) for position in range(first, first + count)]

    def _example_at(self, position: int) -> Example:
        epoch, place = divmod(position, len(self._examples))
        if epoch not in self._permutations:
            order = list(range(len(self._examples)))
            random.Random(f"preceptor prompts {self._seed}/{epoch}").shuffle(order)
            self._permutations = {epoch - 1: self._permutations.get(epoch - 1, []), epoch: order}
        order = self._permutations[epoch]
        return self._examples[order[place]]


def prompt_text(prompt: ExamplePrompt) -> str:
    """A prompt for people to read: a text as it is, of a conversation the last message."""
    return prompt if isinstance(prompt, str) else prompt[-1].content
