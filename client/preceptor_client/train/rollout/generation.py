"""Lets the student write: prompts in, token ids out, in one batch. Knows nothing of steps or of examples."""

# B = prompts, T = padded tokens

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import GenerationConfig, LogitsProcessorList

from preceptor_client.train.prefix import prefix_cache, usable_prefix_length
from preceptor_client.train.rollout import StudentView
from preceptor_client.train.rollout.recorder import StudentRecorder
from preceptor_client.train.student import Student


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How a token is drawn from the student's distribution."""

    temperature: float
    top_p: float


def generate(
    student: Student, prompts: Sequence[Sequence[int]], *, max_new_tokens: int, sampling: Sampling | None
) -> list[list[int]]:
    """Responses to the prompts, each up to its first end token, which it includes. Greedy without `sampling`."""
    output_BT = _generate(student, prompts, max_new_tokens=max_new_tokens, sampling=sampling, recorder=None)
    return [_up_to_end(row, student.end_token_ids) for row in output_BT.tolist()]


def generate_recorded(
    student: Student,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    sampling: Sampling,
    recorder: StudentRecorder,
) -> tuple[list[list[int]], list[StudentView]]:
    """The same, and what the student said at each of their tokens."""
    output_BT = _generate(student, prompts, max_new_tokens=max_new_tokens, sampling=sampling, recorder=recorder)
    responses = [_up_to_end(row, student.end_token_ids) for row in output_BT.tolist()]
    return responses, recorder.finish(output_BT[:, -1], lengths=[len(response) for response in responses])


@torch.no_grad()
def _generate(
    student: Student,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    sampling: Sampling | None,
    recorder: StudentRecorder | None,
) -> torch.Tensor:
    """What was written after the prompts, [B, T], padded behind each response's end."""
    length_P = usable_prefix_length(student, prompts)
    length_T = max(map(len, prompts))
    ids_BT = torch.full((len(prompts), length_T), student.pad_token_id)
    mask_BT = torch.zeros((len(prompts), length_T), dtype=torch.long)
    for row, prompt in enumerate(prompts):
        # Padding lies between the shared prefix and the rest: the prefix starts at 0 in every row.
        rest = prompt[length_P:]
        ids_BT[row, :length_P] = torch.tensor(prompt[:length_P], dtype=torch.long)
        ids_BT[row, length_T - len(rest) :] = torch.tensor(rest)
        mask_BT[row, :length_P] = 1
        mask_BT[row, length_T - len(rest) :] = 1
    cache = prefix_cache(student, prompts[0][:length_P], batch_size=len(prompts)) if length_P else None
    # A mixin that mypy cannot see through.
    output = student.model.generate(  # type: ignore[operator]
        ids_BT.to(student.device),
        attention_mask=mask_BT.to(student.device),
        past_key_values=cache,
        generation_config=_generation_config(student, max_new_tokens=max_new_tokens, sampling=sampling),
        logits_processor=LogitsProcessorList([recorder] if recorder else []),
    )
    assert isinstance(output, torch.Tensor)
    return output[:, length_T:]


def _generation_config(student: Student, *, max_new_tokens: int, sampling: Sampling | None) -> GenerationConfig:
    config = GenerationConfig(
        max_new_tokens=max_new_tokens,
        eos_token_id=list(student.end_token_ids),
        pad_token_id=student.pad_token_id,
        use_cache=True,
        do_sample=sampling is not None,
    )
    if sampling:
        config.temperature = sampling.temperature
        config.top_p = sampling.top_p
        # transformers would keep the 50 likeliest tokens; 0 keeps all.
        config.top_k = 0
    return config


def _up_to_end(ids: list[int], end_token_ids: Sequence[int]) -> list[int]:
    for position, token in enumerate(ids):
        if token in end_token_ids:
            return ids[: position + 1]
    return ids
