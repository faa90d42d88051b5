"""Computes the prefix that all prompts of a batch share once: its length, and its keys and values.

An exact saving: a chat template and a few-shot prefix are often most of a prompt. Gradients flow through it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import DynamicCache, PreTrainedModel


def shared_prefix_length(prompts: Sequence[Sequence[int]]) -> int:
    """Tokens that all prompts begin with, short of each prompt's last: its row predicts the response's first token. 0
    for a single prompt, which shares nothing."""
    if len(prompts) < 2:
        return 0
    longest = min(len(prompt) for prompt in prompts) - 1
    first = prompts[0]
    for length in range(longest):
        if any(prompt[length] != first[length] for prompt in prompts):
            return length
    return longest


@torch.no_grad()
def prefix_cache(model: PreTrainedModel, prefix_ids: Sequence[int], *, batch_size: int) -> DynamicCache:
    """Keys and values of the prefix, computed for one sequence and repeated for a batch."""
    cache = DynamicCache(config=model.config)
    ids_1T = torch.tensor([list(prefix_ids)], device=next(model.parameters()).device)
    model.base_model(ids_1T, past_key_values=cache, use_cache=True)
    cache.batch_repeat_interleave(batch_size)
    return cache
