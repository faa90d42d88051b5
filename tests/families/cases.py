"""What the matrix asks of every teacher: lengths on both sides of what the family's config names, prompts that share a
beginning, responses of one token, short ones beside long ones."""

# P = prompt tokens, T = tokens of a response, C = candidates per position

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from preceptor.wire import TokenArray

from tests.families.small import MAX_MODEL_LEN

NUM_IDS = 256
"""Ids below this are asked for: those of image tokens, which some families replace, are above."""
NUM_CANDIDATES = 3
_FIRST_ID = 3
_SEED = 13
_SHARED = 24
_BEFORE = 5
"""Tokens from a prompt's end to the threshold that its responses end around."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """One request."""

    prompt_P: TokenArray
    responses: tuple[TokenArray, ...]
    candidates: tuple[TokenArray, ...]
    """Of each response, [T, C]."""
    temperature: float


def groups_for(thresholds: Sequence[int]) -> list[Group]:
    """The longest first: a model that remembers what it ran answers the others wrongly."""
    rng = np.random.default_rng(_SEED)

    def ids(length: int) -> TokenArray:
        return rng.integers(_FIRST_ID, NUM_IDS, length, dtype=np.int64)

    def group(prompt: TokenArray, *lengths: int, temperature: float = 1.0) -> Group:
        responses = tuple(ids(length) for length in lengths)
        others = [rng.integers(_FIRST_ID, NUM_IDS, (len(ids_T), NUM_CANDIDATES - 1)) for ids_T in responses]
        candidates = [
            np.concatenate([ids_T[:, None], other], axis=1) for ids_T, other in zip(responses, others, strict=True)
        ]
        return Group(prompt_P=prompt, responses=responses, candidates=tuple(candidates), temperature=temperature)

    stem = ids(_SHARED)
    return [
        group(ids(70), 30, 1, 12),
        group(ids(5), 7, 1),
        *(
            group(ids(length), *_around(threshold, length))
            for threshold in thresholds
            for length in _prompts(threshold)
        ),
        group(np.concatenate([stem, ids(3)]), 5, 22),
        group(np.concatenate([stem, ids(8)]), 9, temperature=2.0),
        group(stem, 2),
        group(ids(1), 3),
    ]


def _prompts(threshold: int) -> tuple[int, ...]:
    """A prompt that ends before the threshold, one that ends at it, one that is past it."""
    return max(1, threshold - _BEFORE), threshold, threshold + 2


def _around(threshold: int, num_prompt: int) -> list[int]:
    """Lengths of responses: with the prompt, one token less than the threshold, as many, one more; and far more."""
    totals = [threshold - 1, threshold, threshold + 1, threshold + 2, min(2 * threshold + 9, MAX_MODEL_LEN)]
    return [total - num_prompt for total in totals if total > num_prompt]
