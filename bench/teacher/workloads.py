"""What is scored: groups of random token ids, the same for every way that is asked for the same job."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from typing import Self

import numpy as np
from preceptor.wire import TokenArray

SEED = 20_261_125
NUM_SPECIAL_IDS = 17
"""SmolLM2's special tokens, which come first and are left out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """Lengths in tokens. A group is one prompt and its responses; `num_shared` tokens begin every prompt."""

    num_groups: int
    num_responses: int
    num_prompt: int
    num_response: int
    num_shared: int = 0

    def scaled(self, scale: float) -> Shape:
        """Fewer groups of the same shape."""
        return dataclasses.replace(self, num_groups=max(1, round(self.num_groups * scale)))

    @property
    def num_sequences(self) -> int:
        return self.num_groups * self.num_responses

    @property
    def num_positions(self) -> int:
        """Scored: every token of every response."""
        return self.num_sequences * self.num_response

    @property
    def num_tokens(self) -> int:
        """Of all sequences, each with its whole prompt."""
        return self.num_sequences * (self.num_shared + self.num_prompt + self.num_response)

    @property
    def num_unique_tokens(self) -> int:
        """Of one forward that computes what is shared once."""
        own = self.num_groups * (self.num_prompt + self.num_responses * self.num_response)
        return self.num_shared + own


SHAPES = {
    "W1": Shape(num_groups=16, num_responses=1, num_prompt=64, num_response=192),
    "W2": Shape(num_groups=8, num_responses=8, num_prompt=256, num_response=64),
    "W3": Shape(num_groups=64, num_responses=1, num_prompt=24, num_response=16, num_shared=1024),
}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Group:
    """A prompt and the responses that share it."""

    prompt_ids: TokenArray
    responses: tuple[TokenArray, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """Names ids completely: whoever makes the groups of an equal job has the same."""

    workload: str
    round_index: int
    top_k: int
    scale: float
    vocabulary_size: int

    @property
    def shape(self) -> Shape:
        return SHAPES[self.workload].scaled(self.scale)

    def groups(self) -> list[Group]:
        """Ids that no other round, workload or K has, so that nothing kept from them helps."""
        seed = [SEED, list(SHAPES).index(self.workload), self.top_k, self.round_index]
        rng, shape = np.random.default_rng(seed), self.shape

        def ids(length: int) -> TokenArray:
            return rng.integers(NUM_SPECIAL_IDS, self.vocabulary_size, length)

        shared = ids(shape.num_shared)
        return [
            Group(
                prompt_ids=np.concatenate([shared, ids(shape.num_prompt)]),
                responses=tuple(ids(shape.num_response) for _ in range(shape.num_responses)),
            )
            for _ in range(shape.num_groups)
        ]

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Self:
        return cls(**json.loads(text))
