from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from preceptor_server.errors import QuotaExceededError
from preceptor_server.tenants.guesses import KeyGuesses

from tests.unit.server.tenants.clocks import Clock


def test_after_ten_wrong_keys_the_next_are_refused_until_one_is_forgiven() -> None:
    clock = Clock()
    guesses = KeyGuesses(max_wrong=10, seconds_each=6, clock=clock)
    for _ in range(10):
        guesses.wrong("p")
    with pytest.raises(QuotaExceededError) as raised:
        guesses.wrong("p")
    assert (raised.value.reason, raised.value.retry_after_seconds) == ("TOO_MANY_WRONG_KEYS", 6)
    clock.seconds += 6
    guesses.wrong("p")
    with pytest.raises(QuotaExceededError):
        guesses.wrong("p")


def test_refused_attempts_do_not_prolong_the_wait() -> None:
    clock = Clock()
    guesses = KeyGuesses(max_wrong=1, seconds_each=6, clock=clock)
    guesses.wrong("p")
    for _ in range(1000):
        with pytest.raises(QuotaExceededError, match="come back in 6 s"):
            guesses.wrong("p")
    clock.seconds += 6
    guesses.wrong("p")


def test_other_peers_do_not_wait() -> None:
    guesses = KeyGuesses(max_wrong=1, clock=Clock())
    guesses.wrong("p")
    guesses.wrong("q")


def test_memory_is_bounded_and_those_seen_last_are_kept() -> None:
    guesses = KeyGuesses(max_wrong=1, max_peers=10, clock=Clock())
    for number in range(1000):
        guesses.wrong(f"p{number}")
    assert len(guesses._forgiven_at) == 10
    with pytest.raises(QuotaExceededError):
        guesses.wrong("p999")
    guesses.wrong("p0")


@given(st.lists(st.floats(0, 30), max_size=60))
def test_no_more_than_the_burst_and_one_per_interval_are_let_through(pauses: list[float]) -> None:
    clock = Clock()
    guesses = KeyGuesses(max_wrong=3, seconds_each=5, clock=clock)
    began, num_through = clock.seconds, 0
    for pause in pauses:
        clock.seconds += pause
        try:
            guesses.wrong("p")
        except QuotaExceededError as error:
            clock.seconds += error.retry_after_seconds
        else:
            num_through += 1
        assert num_through <= 3 + (clock.seconds - began) / 5 + 1e-9
