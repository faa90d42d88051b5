"""Engine "mixed": gives each example of a step to one of several engines, by their shares. Rolls nothing out itself."""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import accumulate
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from preceptor_client.train.parts import PartConfig
from preceptor_client.train.rollout.engine import ENGINES
from preceptor_client.train.rollout.episode import Episode

if TYPE_CHECKING:
    from preceptor_client.train.rollout.engine import OnBad, Policy, RolloutEngine, RolloutRequest


class MixedPart(PartConfig):
    """An engine and its share."""

    share: float = Field(gt=0)
    """Of the prompts of a step; shares are relative to each other."""


class Mixed:
    """Which example goes to which engine is a function of seed and step. Each engine gets its share of every step to
    within one example, and in the mean over many steps exactly."""

    def __init__(self, parts: Annotated[list[MixedPart], Field(min_length=1)]) -> None:
        """Each of `parts` is {kind, options, share}."""
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
        """As `RolloutEngine.run`, one engine after the other."""
        places = places_by_share(len(request.examples), shares=self._shares, seed=request.seed, step=request.step)
        for part, (engine, own) in enumerate(zip(self._engines, places, strict=True)):
            if not own:
                continue
            asked = replace(
                request,
                examples=[request.examples[place] for place in own],
                first_slot=0,
                seed=_seed(request.seed, part=part),
            )
            for batch in engine.run(asked, policy=policy, on_bad=on_bad):
                yield [replace(episode, slot=request.first_slot + own[episode.slot]) for episode in batch]


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
