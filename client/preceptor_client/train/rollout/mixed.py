"""Engine "mixed": gives each example of a step to one of several engines, by their shares, or to every one of them.
Rolls nothing out itself.
"""

from __future__ import annotations

import hashlib
import math
import random
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import accumulate
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from preceptor_client.train.errors import InvalidDataError, InvalidEpisodeError
from preceptor_client.train.parts import PartConfig
from preceptor_client.train.rollout.engine import ENGINES
from preceptor_client.train.rollout.episode import Episode

if TYPE_CHECKING:
    from preceptor_client.train.rollout.engine import OnBad, Policy, RolloutEngine, RolloutRequest


class MixedPart(PartConfig):
    """An engine and its share."""

    share: float = Field(1.0, gt=0)
    """Of the prompts of a step; shares are relative to each other."""


class Mixed:
    """Which example goes to which engine is a function of seed and step. Each engine gets its share of every step to
    within one example, and in the mean over many steps exactly. `info["engine"]` of an episode is the kind of its
    engine."""

    def __init__(self, parts: Annotated[list[MixedPart], Field(min_length=1)], *, every_prompt: bool = False) -> None:
        """Each of `parts` is {kind, options, share}. With `every_prompt` each engine answers every prompt, and shares
        count for nothing: the samples of one engine follow those of the engine before it."""
        self._every_prompt = every_prompt
        self._kinds = [part.kind for part in parts]
        self._shares = [part.share for part in parts]
        self._engines: list[RolloutEngine] = [
            ENGINES.make(part.kind, part.options, key=f"rollout.engine_options.parts[{place}].kind")
            for place, part in enumerate(parts)
        ]

    @property
    def num_top_ids(self) -> int:
        """Likeliest tokens of the student that its engines need in `Policy.view`."""
        return max(getattr(engine, "num_top_ids", 0) for engine in self._engines)

    def run(self, request: RolloutRequest, *, policy: Policy, on_bad: OnBad) -> Iterator[list[Episode]]:
        """As `RolloutEngine.run`. By shares, one engine after the other; else one batch of prompts after the other."""
        if self._every_prompt:
            yield from self._by_all(request, policy=policy, on_bad=on_bad)
            return
        places = places_by_share(len(request.examples), shares=self._shares, seed=request.seed, step=request.step)
        for part, own in enumerate(places):
            if not own:
                continue
            asked = replace(request, examples=[request.examples[place] for place in own], first_slot=0)
            for batch in self._by_one(part, asked, policy=policy, on_bad=on_bad):
                yield [replace(episode, slot=request.first_slot + own[episode.slot]) for episode in batch]

    def _by_all(self, request: RolloutRequest, *, policy: Policy, on_bad: OnBad) -> Iterator[list[Episode]]:
        """All episodes of a prompt are in one batch: so many prompts at a time as one engine answers at once."""
        size = max(1, request.config.batch_size // request.config.responses_per_prompt)
        for first in range(0, len(request.examples), size):
            asked = replace(
                request,
                examples=request.examples[first : first + size],
                first_slot=request.first_slot + first,
            )
            by_slot: dict[int, list[Episode]] = defaultdict(list)
            told = _ToldOnce(on_bad)
            for part in range(len(self._engines)):
                num_before = {slot: 1 + max(one.sample for one in given) for slot, given in by_slot.items()}
                for batch in self._by_one(part, asked, policy=policy, on_bad=told):
                    for episode in batch:
                        sample = num_before.get(episode.slot, 0) + episode.sample
                        by_slot[episode.slot].append(replace(episode, sample=sample))
            if by_slot:
                yield [episode for slot in sorted(by_slot) for episode in by_slot[slot]]

    def _by_one(self, part: int, request: RolloutRequest, *, policy: Policy, on_bad: OnBad) -> Iterator[list[Episode]]:
        asked = replace(request, seed=_seed(request.seed, part=part))
        for batch in self._engines[part].run(asked, policy=policy, on_bad=on_bad):
            yield [replace(one, info={**one.info, "engine": self._kinds[part]}) for one in batch]


class _ToldOnce:
    """An example that several engines refuse for the same reason is one bad example."""

    def __init__(self, on_bad: OnBad) -> None:
        self._on_bad = on_bad
        self._told: set[str] = set()

    def __call__(self, error: InvalidDataError | InvalidEpisodeError) -> None:
        if isinstance(error, InvalidDataError):
            if str(error) in self._told:
                return
            self._told.add(str(error))
        self._on_bad(error)


def places_by_share(num: int, *, shares: Sequence[float], seed: int, step: int) -> list[list[int]]:
    """The places of a step's examples that each part gets, in order. Systematic sampling: each count is its share of
    `num`, rounded up or down, by an offset that is drawn anew at each step."""
    draws = random.Random(f"preceptor mixed {seed}/{step}")
    order = list(range(num))
    draws.shuffle(order)
    offset = draws.random()
    ends = [math.floor(num * bound / sum(shares) + offset) for bound in accumulate(shares)]
    # The last bound is the sum itself, to within rounding.
    ends[-1] = num
    return [sorted(order[start:end]) for start, end in zip([0, *ends], ends, strict=False)]


def _seed(seed: int, *, part: int) -> int:
    """Two engines of one kind draw apart."""
    digest = hashlib.sha256(f"preceptor mixed {seed}/{part}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1
