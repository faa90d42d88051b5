from __future__ import annotations

import pytest
from preceptor_client.train.instruments.repetition import repeated_ngrams


@pytest.mark.parametrize(
    ("ids", "expected"),
    [
        ((), ""),
        ((1,), "."),
        ((1, 2, 3, 4), "...."),
        # The second 1 2 3 4 is complete at its last token, not before.
        ((1, 2, 3, 4, 1, 2, 3, 4), ".......x"),
        # A loop of one token repeats itself from the fifth on: its 4-grams overlap.
        ((7, 7, 7, 7, 7, 7), "....xx"),
        # A loop of three tokens: the first 4-gram that stood before ends at index 6.
        ((1, 2, 3, 1, 2, 3, 1, 2), "......xx"),
        ((1, 2, 3, 4, 9, 2, 3, 4), "........"),
    ],
)
def test_token_is_repeated_where_it_completes_four_that_stood_before(ids: tuple[int, ...], expected: str) -> None:
    assert "".join(".x"[is_repeated] for is_repeated in repeated_ngrams(ids).tolist()) == expected


def test_length_of_the_ngram_counts() -> None:
    assert repeated_ngrams((1, 2, 1, 2), length=2).tolist() == [False, False, False, True]
