"""Lets the student write: prompts in, token ids out. Knows nothing of steps or of examples."""

# B = prompts, T = padded tokens

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from transformers import GenerationConfig

from preceptor_client.train.student.recorder import StudentRecorder
from preceptor_client.train.student.student import Student
from preceptor_client.train.student.view import StudentView
from preceptor_client.train.student.writing import write_part


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How a token is drawn from the student's distribution."""

    temperature: float
    top_p: float


def generate(
    student: Student, prompts: Sequence[Sequence[int]], *, max_new_tokens: int, sampling: Sampling | None
) -> list[list[int]]:
    """Responses to the prompts, each up to its first end token, which it includes. Greedy without `sampling`."""
    responses: dict[int, list[int]] = {}
    for part, output_BT in _written(student, prompts, max_new_tokens=max_new_tokens, sampling=sampling):
        responses |= zip(part, _up_to_ends(output_BT, student), strict=True)
    return [responses[index] for index in range(len(prompts))]


def generate_recorded(
    student: Student,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    sampling: Sampling,
    recorder: StudentRecorder,
) -> tuple[list[list[int]], list[StudentView]]:
    """The same, and what the student said at each of their tokens."""
    written: dict[int, tuple[list[int], StudentView]] = {}
    for part, output_BT in _written(
        student, prompts, max_new_tokens=max_new_tokens, sampling=sampling, recorder=recorder
    ):
        responses = _up_to_ends(output_BT, student)
        views = recorder.finish(output_BT[:, -1], lengths=[len(response) for response in responses])
        written |= zip(part, zip(responses, views, strict=True), strict=True)
    return [written[index][0] for index in range(len(prompts))], [written[index][1] for index in range(len(prompts))]


def _written(
    student: Student,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    sampling: Sampling | None,
    recorder: StudentRecorder | None = None,
) -> Iterator[tuple[list[int], torch.Tensor]]:
    """Prompts that were answered together, by their indices, and what was written, [B, T], padded behind each
    response's end."""
    writing = student.ways.up_to(max(map(len, prompts)) + max_new_tokens).writing
    for part in writing.parts(prompts):
        yield (
            part,
            write_part(
                student.model,
                [prompts[index] for index in part],
                writing=writing,
                config=_generation_config(student, max_new_tokens=max_new_tokens, sampling=sampling),
                pad_token_id=student.pad_token_id,
                observer=recorder,
            ),
        )


def _generation_config(student: Student, *, max_new_tokens: int, sampling: Sampling | None) -> GenerationConfig:
    config = GenerationConfig(
        max_new_tokens=max_new_tokens,
        eos_token_id=list(student.end_token_ids),
        pad_token_id=student.pad_token_id,
        do_sample=sampling is not None,
    )
    if sampling:
        config.temperature = sampling.temperature
        config.top_p = sampling.top_p
        # transformers would keep the 50 likeliest tokens; 0 keeps all.
        config.top_k = 0
    return config


def _up_to_ends(output_BT: torch.Tensor, student: Student) -> list[list[int]]:
    return [_up_to_end(row, student.end_token_ids) for row in output_BT.tolist()]


def _up_to_end(ids: list[int], end_token_ids: Sequence[int]) -> list[int]:
    for position, token in enumerate(ids):
        if token in end_token_ids:
            return ids[: position + 1]
    return ids
