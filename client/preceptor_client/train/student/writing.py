"""Prompts in, tokens out, with transformers: the ways of answering a batch of prompts. Knows nothing of students.

The quickest way first: prompts padded to one length behind what they share, prompts padded to the left, prompts of one
length together, one prompt at a time; with a cache, and without. Which of them a model computes right, `ways` finds.
"""

# B = prompts, T = padded tokens, W = tokens written

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import torch
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, PreTrainedModel

from preceptor_client.train.student.prefix import prefix_cache, shared_prefix_length


class Together(StrEnum):
    """Which prompts are answered in one forward."""

    SHARED = "together, what they share computed once"
    PADDED = "together, padded"
    ONE_LENGTH = "together where they have one length"
    ALONE = "one at a time"


@dataclass(frozen=True, slots=True, kw_only=True)
class Writing:
    """A way of answering prompts."""

    together: Together
    caches: bool = True
    """Whether a token is computed from what is kept of those before it, rather than all of them again."""

    def __str__(self) -> str:
        return self.together.value if self.caches else f"{self.together.value}, without a cache"

    def parts(self, prompts: Sequence[Sequence[int]]) -> list[list[int]]:
        """Indices of the prompts that are answered together, the shortest first where lengths decide."""
        if self.together is Together.ALONE:
            return [[index] for index in range(len(prompts))]
        if self.together is not Together.ONE_LENGTH:
            return [list(range(len(prompts)))]
        by_length: dict[int, list[int]] = defaultdict(list)
        for index, prompt in enumerate(prompts):
            by_length[len(prompt)].append(index)
        return [by_length[length] for length in sorted(by_length)]


WRITINGS = (
    *(Writing(together=together) for together in Together),
    *(Writing(together=together, caches=False) for together in Together if together is not Together.SHARED),
)
"""All of them, the quickest first."""


@torch.no_grad()
def write_part(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    *,
    writing: Writing,
    config: GenerationConfig,
    pad_token_id: int,
    observer: LogitsProcessor | None,
) -> torch.Tensor:
    """What was written after prompts that are answered together, [B, W], padded behind each end. `config` says when to
    stop and how to draw; `observer` sees the logits before each token."""
    config.use_cache = writing.caches
    length_P = shared_prefix_length(prompts) if writing.together is Together.SHARED else 0
    length_T = max(map(len, prompts))
    ids_BT = torch.full((len(prompts), length_T), pad_token_id)
    mask_BT = torch.zeros((len(prompts), length_T), dtype=torch.long)
    for row, prompt in enumerate(prompts):
        # Padding lies between the shared prefix and the rest: the prefix starts at 0 in every row.
        rest = prompt[length_P:]
        ids_BT[row, :length_P] = torch.tensor(prompt[:length_P], dtype=torch.long)
        ids_BT[row, length_T - len(rest) :] = torch.tensor(rest)
        mask_BT[row, :length_P] = 1
        mask_BT[row, length_T - len(rest) :] = 1
    cache = prefix_cache(model, prompts[0][:length_P], batch_size=len(prompts)) if length_P else None
    device = next(model.parameters()).device
    # A mixin that mypy cannot see through.
    output = model.generate(  # type: ignore[operator]
        ids_BT.to(device),
        attention_mask=mask_BT.to(device),
        past_key_values=cache,
        generation_config=config,
        logits_processor=LogitsProcessorList([observer] if observer else []),
    )
    assert isinstance(output, torch.Tensor)
    return output[:, length_T:]
