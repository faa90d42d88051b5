"""What all prompts of a batch begin with, computed once: its length, and its keys and values.

An exact saving: a chat template and a few-shot prefix are often most of a prompt. Gradients flow through it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import DynamicCache

from preceptor_client.train.flat import keeps_all_tokens
from preceptor_client.train.student import Student


def shared_prefix_length(prompts: Sequence[Sequence[int]]) -> int:
    """Tokens that all prompts begin with, short of each prompt's last: its row predicts the response's first token."""
    longest = min(len(prompt) for prompt in prompts) - 1
    first = prompts[0]
    for length in range(longest):
        if any(prompt[length] != first[length] for prompt in prompts):
            return length
    return longest


def usable_prefix_length(student: Student, prompts: Sequence[Sequence[int]]) -> int:
    """The shared length, or 0 where sharing saves nothing or the model keeps more than keys and values of all tokens
    (sliding windows, recurrent states), whose caches cannot be padded in the middle."""
    if len(prompts) < 2 or not keeps_all_tokens(student.model):
        return 0
    return shared_prefix_length(prompts)


def prefix_cache(student: Student, prefix_ids: Sequence[int], *, batch_size: int) -> DynamicCache:
    """Keys and values of the prefix, computed for one sequence and repeated for a batch."""
    cache = _empty_cache(student)
    ids_1T = torch.tensor([list(prefix_ids)], device=student.device)
    student.base(ids_1T, past_key_values=cache, use_cache=True)
    cache.batch_repeat_interleave(batch_size)
    return cache


def _empty_cache(student: Student) -> DynamicCache:
    return DynamicCache(config=student.model.config)
