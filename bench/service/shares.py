"""How evenly a teacher's time was shared: Jain's index, and shares beside weights."""

from __future__ import annotations

from collections.abc import Sequence


def jain(amounts: Sequence[float]) -> float:
    """(sum x)^2 / (n sum x^2), in [1/n, 1]: 1 where all have the same (Jain, Chiu and Hawe 1984). NaN of nothing."""
    squares = sum(one * one for one in amounts)
    return sum(amounts) ** 2 / (len(amounts) * squares) if squares else float("nan")


def worst_deviation(amounts: Sequence[float], weights: Sequence[float]) -> float:
    """Largest relative difference of a share from what its weight promises."""
    total, all_weights = sum(amounts), sum(weights)
    if not total:
        return float("nan")
    return max(
        abs((amount / total) / (weight / all_weights) - 1) for amount, weight in zip(amounts, weights, strict=True)
    )
