"""What a token costs by the context that it attends to: the further from the beginning, the more."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class ContextCosts:
    """Of one model. The unit is a token without context; the one at position p costs 1 + p / horizon."""

    horizon: float = math.inf
    """Tokens of context whose attention costs as much as all else that a token goes through. Infinite where attention
    sees a window only, or where nothing is known of the model."""

    def of_span(self, first: int, stop: int) -> float:
        """Of the tokens at positions first to stop - 1."""
        return (stop - first) * (1.0 + (first + stop - 1) / (2.0 * self.horizon))

    def num_tokens(self, first: int, cost: float) -> int:
        """How many tokens from position `first` on cost at most `cost` together."""
        if cost <= 0:
            return 0
        # n * (1 + (2 first + n - 1) / 2h) <= cost, solved for n; in a form that holds for an infinite horizon too.
        linear = 1.0 + (2 * first - 1) / (2.0 * self.horizon)
        num_tokens = int(2.0 * cost / (linear + math.sqrt(linear * linear + 2.0 * cost / self.horizon)))
        while num_tokens > 0 and self.of_span(first, first + num_tokens) > cost:
            num_tokens -= 1
        while self.of_span(first, first + num_tokens + 1) <= cost:
            num_tokens += 1
        return num_tokens


FLAT = ContextCosts()
"""Every token costs the same."""
