"""Rollouts with transformers: samples responses batch by batch. Knows nothing of scoring."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from typing import Self

import torch

from preceptor_client.train.data.examples import Example
from preceptor_client.train.errors import InvalidDataError
from preceptor_client.train.rollout.config import RolloutConfig
from preceptor_client.train.rollout.episode import Episode, single_turn
from preceptor_client.train.run.config import RunConfig
from preceptor_client.train.student.encoding import encode_prompt
from preceptor_client.train.student.generation import Sampling, generate_recorded
from preceptor_client.train.student.recorder import StudentRecorder
from preceptor_client.train.student.student import Student
from preceptor_client.train.student.view import StudentView


class HfRollouts:
    """Lets the student answer examples. What it draws is a function of its weights, the seed, step and batch."""

    def __init__(
        self,
        student: Student,
        *,
        config: RolloutConfig,
        seed: int,
        loss_temperature: float = 1.0,
        num_top_ids: int = 0,
    ) -> None:
        """`loss_temperature` is that of the student's logprobs in `Episode.student`; `num_top_ids` asks for that many
        of its likeliest tokens there."""
        self._student = student
        self._loss_temperature = loss_temperature
        self._num_top_ids = num_top_ids
        self._config = config
        self._seed = seed
        self._sampling = Sampling(temperature=config.temperature, top_p=config.top_p)

    @classmethod
    def of_run(cls, student: Student, *, config: RunConfig) -> Self:
        """As a run's settings say."""
        return cls(
            student,
            config=config.rollout,
            seed=config.run.seed,
            loss_temperature=config.teacher.temperature,
            num_top_ids=config.teacher.top_k if config.objective.needs_student_tokens else 0,
        )

    def generate(
        self, examples: Sequence[Example], *, step: int, on_bad: Callable[[InvalidDataError], None] | None = None
    ) -> Iterator[list[Episode]]:
        """Yields the rollouts of a step in batches of at most `rollout.batch_size`; all responses to one prompt are in
        one batch. An example whose prompt cannot be encoded is given to `on_bad` and left out; without it,
        InvalidDataError is raised."""
        kept = list(self._encoded(examples, on_bad=on_bad))
        examples, prompts = [example for example, _ in kept], [ids for _, ids in kept]
        num_responses = self._config.responses_per_prompt
        prompts_per_batch = self._config.batch_size // num_responses
        for batch, first in enumerate(range(0, len(examples), prompts_per_batch)):
            slots = [
                slot
                for slot in range(first, min(first + prompts_per_batch, len(examples)))
                for _ in range(num_responses)
            ]
            responses, views = self._draw(
                [prompts[slot] for slot in slots], seed=draw_seed(self._seed, step=step, batch=batch)
            )
            yield [
                single_turn(
                    example=examples[slot],
                    slot=slot,
                    prompt_ids=prompts[slot],
                    response_ids=tuple(response),
                    finish_reason="stop" if response[-1] in self._student.end_token_ids else "length",
                    student=view,
                )
                for slot, response, view in zip(slots, responses, views, strict=True)
            ]

    def _encoded(
        self, examples: Sequence[Example], *, on_bad: Callable[[InvalidDataError], None] | None
    ) -> Iterator[tuple[Example, tuple[int, ...]]]:
        for example in examples:
            try:
                yield example, tuple(encode_prompt(self._student, example.prompt, where=example.name))
            except InvalidDataError as error:
                if on_bad is None:
                    raise
                on_bad(error)

    def _draw(self, prompts: Sequence[Sequence[int]], *, seed: int) -> tuple[list[list[int]], list[StudentView]]:
        devices = [self._student.device] if self._student.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(seed)
            return generate_recorded(
                self._student,
                prompts,
                max_new_tokens=self._config.max_new_tokens,
                sampling=self._sampling,
                recorder=StudentRecorder(temperature=self._loss_temperature, num_top_ids=self._num_top_ids),
            )


def draw_seed(seed: int, *, step: int, batch: int) -> int:
    """A seed for one batch of rollouts, unrelated to those of its neighbours."""
    digest = hashlib.sha256(f"preceptor rollouts {seed}/{step}/{batch}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1
