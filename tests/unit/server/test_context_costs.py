"""What a token costs by its position."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from preceptor_server.context_costs import FLAT, ContextCosts

HORIZONS = st.one_of(st.just(math.inf), st.floats(0.5, 1e6))


@given(HORIZONS, st.integers(0, 5000), st.integers(0, 300))
def test_a_span_costs_what_its_tokens_cost(horizon: float, first: int, length: int) -> None:
    expected = sum(1 + position / horizon for position in range(first, first + length))
    assert ContextCosts(horizon=horizon).of_span(first, first + length) == pytest.approx(expected)


@given(HORIZONS, st.lists(st.integers(0, 100_000), min_size=2, max_size=6).map(sorted))
def test_parts_of_a_span_cost_what_it_costs(horizon: float, cuts: list[int]) -> None:
    costs = ContextCosts(horizon=horizon)
    parts = sum(costs.of_span(a, b) for a, b in pairwise(cuts))
    assert parts == pytest.approx(costs.of_span(cuts[0], cuts[-1]))


@given(HORIZONS, st.integers(0, 1_000_000), st.floats(0, 1e7))
def test_as_many_tokens_as_may_be_and_no_more(horizon: float, first: int, cost: float) -> None:
    costs = ContextCosts(horizon=horizon)
    num_tokens = costs.num_tokens(first, cost)
    assert costs.of_span(first, first + num_tokens) <= cost < costs.of_span(first, first + num_tokens + 1)


def test_where_nothing_is_known_a_token_is_a_token() -> None:
    assert FLAT.of_span(7, 1_000_007) == 1_000_000
    assert FLAT.num_tokens(7, 12.9) == 12
