"""Assigns prompts to batches, and derives the seed of each batch. Pure functions; imports no torch."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

from preceptor_client.train.rollout.config import RolloutConfig


def slots_of_batches(num_prompts: int, *, config: RolloutConfig) -> Iterator[list[int]]:
    """For each batch, which prompt each of its responses answers; all responses to one prompt are in one batch."""
    prompts_per_batch = max(1, config.batch_size // config.responses_per_prompt)
    for first in range(0, num_prompts, prompts_per_batch):
        prompts = range(first, min(first + prompts_per_batch, num_prompts))
        yield [prompt for prompt in prompts for _ in range(config.responses_per_prompt)]


def draw_seed(seed: int, *, step: int, batch: int, first_slot: int = 0, turn: int | None = None, part: int = 0) -> int:
    """A seed for one batch of rollouts, unrelated to those of its neighbours. `first_slot` tells the tasks of a step
    apart, `turn` the turns of conversations, and `part` what is written apart in one turn."""
    place = f"{seed}/{step}/{batch}"
    if first_slot:
        place += f" from {first_slot}"
    if turn is not None:
        place += f" turn {turn} part {part}"
    digest = hashlib.sha256(f"preceptor rollouts {place}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1
