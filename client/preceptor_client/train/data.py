"""Reads examples, and says which of them belong to a step. Knows nothing of tokenizers or of models."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from preceptor_client.train.errors import InvalidDataError
from preceptor_client.types import ChatMessage

ExamplePrompt = str | tuple[ChatMessage, ...]

_KEYS = ("prompt", "teacher_prompt", "answer", "task")


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """One thing to practise, or to be measured on."""

    index: int
    prompt: ExamplePrompt
    teacher_prompt: ExamplePrompt | None = None
    """What the teacher reads instead of the student's prompt."""
    answer: str | None = None
    task: str = ""
    """What it belongs to, in metrics and plots; empty where all examples are of one kind."""


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
        first = (step - 1) * self._prompts_per_step
        return [self._example_at(position) for position in range(first, first + self._prompts_per_step)]

    def _example_at(self, position: int) -> Example:
        epoch, place = divmod(position, len(self._examples))
        if epoch not in self._permutations:
            order = list(range(len(self._examples)))
            random.Random(f"preceptor prompts {self._seed}/{epoch}").shuffle(order)
            self._permutations = {epoch - 1: self._permutations.get(epoch - 1, []), epoch: order}
        order = self._permutations[epoch]
        return self._examples[order[place]]


def load_examples(
    source: str,
    *,
    split: str = "train",
    subset: str | None = None,
    prompt_field: str = "prompt",
    answer_field: str = "answer",
) -> list[Example]:
    """Reads a JSONL file where `source` ends with .jsonl, else a dataset of Hugging Face `datasets`.

    The other arguments are for datasets only. Raises InvalidDataError, which names the file and the line.
    """
    if source.endswith(".jsonl"):
        examples = _read_jsonl(Path(source).expanduser())
    else:
        rows = _dataset_rows(source, split=split, subset=subset)
        examples = []
        for index, row in enumerate(rows):
            where = f"{source} [{split}] row {index}"
            if prompt_field not in row:
                columns = ", ".join(sorted(row))
                raise InvalidDataError(
                    f"{where}: no column {prompt_field!r}: set data.prompt_field to one of {columns}"
                )
            known = {"prompt": row[prompt_field], "answer": row.get(answer_field)}
            examples.append(_parse_example(known, index=index, where=where))
    if not examples:
        raise InvalidDataError(f"{source}: holds no example")
    return examples


def prompt_text(prompt: ExamplePrompt) -> str:
    """A prompt for people to read: a text as it is, of a conversation the last message."""
    return prompt if isinstance(prompt, str) else prompt[-1].content


def _read_jsonl(path: Path) -> list[Example]:
    if not path.is_file():
        raise InvalidDataError(f"{path}: no such file")
    examples: list[Example] = []
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            where = f"{path}:{number}"
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise InvalidDataError(f"{where}: not JSON: {error.msg} at column {error.colno}") from error
            if not isinstance(row, dict):
                raise InvalidDataError(f"{where}: must be an object with a 'prompt', not {type(row).__name__}")
            if unknown := sorted(set(row) - set(_KEYS)):
                raise InvalidDataError(f"{where}: unknown key {unknown[0]!r}: known are {', '.join(_KEYS)}")
            examples.append(_parse_example(row, index=len(examples), where=where))
    return examples


def _dataset_rows(name: str, *, split: str, subset: str | None) -> Iterable[Mapping[str, object]]:
    from datasets import load_dataset
    from datasets.exceptions import DatasetNotFoundError

    try:
        rows: Iterable[Mapping[str, object]] = load_dataset(name, subset, split=split)
    except (DatasetNotFoundError, ConnectionError, FileNotFoundError, ValueError) as error:
        raise InvalidDataError(
            f"{name}: not a dataset that can be read ({error}); the name of a file must end with .jsonl"
        ) from error
    return rows


def _parse_example(row: Mapping[str, object], *, index: int, where: str) -> Example:
    if "prompt" not in row:
        raise InvalidDataError(f"{where}: has no 'prompt'")
    teacher_prompt = row.get("teacher_prompt")
    answer = row.get("answer")
    if answer is not None and (not isinstance(answer, str) or not answer.strip()):
        raise InvalidDataError(f"{where}: 'answer' must be a text that is not empty, not {answer!r}")
    task = row.get("task")
    if task is not None and not isinstance(task, str):
        raise InvalidDataError(f"{where}: 'task' must be a text, not {task!r}")
    return Example(
        index=index,
        prompt=_parse_prompt(row["prompt"], where=f"{where}: 'prompt'"),
        teacher_prompt=None
        if teacher_prompt is None
        else _parse_prompt(teacher_prompt, where=f"{where}: 'teacher_prompt'"),
        answer=answer,
        task=task or "",
    )


def _parse_prompt(value: object, *, where: str) -> ExamplePrompt:
    if isinstance(value, str) and value:
        return value
    if not isinstance(value, list) or not value:
        raise InvalidDataError(f"{where} must be a text, or a list of messages, and not empty")
    messages: list[ChatMessage] = []
    for number, message in enumerate(value):
        if (
            not isinstance(message, dict)
            or set(message) != {"role", "content"}
            or not all(isinstance(part, str) for part in message.values())
        ):
            raise InvalidDataError(f"{where} message {number} must be {{'role': text, 'content': text}}, nothing else")
        messages.append(ChatMessage(role=message["role"], content=message["content"]))
    return tuple(messages)
