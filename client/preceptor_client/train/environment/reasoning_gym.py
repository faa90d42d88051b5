"""Tasks of the package reasoning-gym: generated questions, and verifiers that reward an answer. One turn each."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache
from typing import Annotated, Any

from pydantic import Field, JsonValue

from preceptor_client.train.data.examples import Example
from preceptor_client.train.environment.environment import Messages, Turn, without_thoughts
from preceptor_client.train.errors import InvalidPartError
from preceptor_client.types import ChatMessage

INSTRUCTION = "Answer the question. Give the answer, and nothing else, between <answer> and </answer>."


class ReasoningGym:
    """An `Environment`: asks entry `index` of a dataset for the example of that index, and rewards the answer between
    `<answer>` and `</answer>`, or else all of the text."""

    def __init__(
        self,
        *,
        dataset: str,
        size: Annotated[int, Field(ge=1)] = 500,
        seed: int = 0,
        instruction: str = INSTRUCTION,
        options: dict[str, JsonValue] | None = None,
    ) -> None:
        """`dataset` is its name; `size` and `seed` say what is generated, and `options` are the dataset's own.
        `instruction` is the system's message; none where it is empty."""
        self._dataset = _dataset(dataset, size, seed, json.dumps(options or {}))
        self._size = size
        self._instruction = instruction
        self._entry: Mapping[str, Any] = {}

    async def reset(self, example: Example) -> Messages:
        """As `Environment.reset`."""
        self._entry = self._dataset[example.index % self._size]
        return _conversation(self._entry, instruction=self._instruction)

    async def step(self, text: str) -> Turn:
        """As `Environment.step`."""
        from reasoning_gym.utils import extract_answer

        said = without_thoughts(text)
        answer = extract_answer(said)
        score = self._dataset.score_answer(answer=said if answer is None else answer, entry=self._entry)
        return Turn(reward=float(score), done=True, info={"expected_answer": str(self._entry["answer"])})


def reasoning_gym_examples(
    dataset: str,
    *,
    size: int,
    seed: int = 0,
    instruction: str = INSTRUCTION,
    options: Mapping[str, JsonValue] | None = None,
) -> list[Example]:
    """The same questions as plain examples, for training without a reward or as held-out data; the dataset is their
    task. Raises InvalidPartError as the environment does."""
    entries = _dataset(dataset, size, seed, json.dumps(dict(options or {})))
    return [
        Example(
            index=index,
            where=f"reasoning_gym {dataset} (seed {seed}) entry {index}",
            prompt=_conversation(entries[index], instruction=instruction),
            answer=None if entries[index]["answer"] is None else str(entries[index]["answer"]),
            task=dataset,
        )
        for index in range(size)
    ]


def _conversation(entry: Mapping[str, Any], *, instruction: str) -> tuple[ChatMessage, ...]:
    system = (ChatMessage(role="system", content=instruction),) if instruction else ()
    return (*system, ChatMessage(role="user", content=str(entry["question"])))


@lru_cache(maxsize=64)
def _dataset(name: str, size: int, seed: int, options: str) -> Any:  # Any: the package has no types
    """An entry is a function of its index, so that all episodes may share it."""
    try:
        import reasoning_gym
    except ModuleNotFoundError as error:
        raise InvalidPartError(
            f"needs the package reasoning-gym: pip install 'preceptor[environments]' ({error})"
        ) from error
    try:
        return reasoning_gym.create_dataset(name, size=size, seed=seed, **json.loads(options))
    except (ValueError, TypeError, AssertionError) as error:
        raise InvalidPartError(f"dataset={name!r}, options={options}: reasoning-gym refuses them: {error}") from error
