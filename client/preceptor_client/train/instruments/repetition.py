"""Finds where a response repeats itself. Knows nothing of teachers."""

# T = tokens of a response

from __future__ import annotations

import numpy as np
import numpy.typing as npt

NGRAM_LENGTH = 4
"""Shorter n-grams recur in any text ("of the"); a loop of any length shows in n-grams of four as well."""


def repeated_ngrams(response_ids: tuple[int, ...], *, length: int = NGRAM_LENGTH) -> npt.NDArray[np.bool_]:
    """Whether a token completes an n-gram that stood before in the same response, overlap allowed; shape [T]. The first
    `length` tokens never do."""
    is_repeated_T = np.zeros(len(response_ids), np.bool_)
    seen: set[tuple[int, ...]] = set()
    for end in range(length, len(response_ids) + 1):
        ngram = response_ids[end - length : end]
        if ngram in seen:
            is_repeated_T[end - 1] = True
        seen.add(ngram)
    return is_repeated_T
