"""Finds the tokens at which a student repeats itself. Knows nothing of teachers."""

# T = tokens of a response

from __future__ import annotations

import numpy as np
import numpy.typing as npt

NGRAM_LENGTH = 4
"""Shorter n-grams recur in any text ("of the"); a loop of any length shows in n-grams of four as well."""


def repeated_ngrams(
    response_ids: tuple[int, ...],
    *,
    is_own_T: npt.NDArray[np.bool_] | None = None,
    length: int = NGRAM_LENGTH,
    seen: set[tuple[int, ...]] | None = None,
) -> npt.NDArray[np.bool_]:
    """Whether a token completes an n-gram that stood before in the same response, overlap allowed; shape [T]. The first
    `length` tokens never do.

    `is_own_T` says which tokens the student wrote, all by default: an n-gram that holds another's token counts neither
    as a repetition nor as one that stood before. `seen` holds the n-grams of earlier parts, and takes these up.
    """
    is_repeated_T = np.zeros(len(response_ids), np.bool_)
    seen = set() if seen is None else seen
    num_own = [*range(len(response_ids) + 1)] if is_own_T is None else [0, *np.cumsum(is_own_T).tolist()]
    for end in range(length, len(response_ids) + 1):
        if num_own[end] - num_own[end - length] < length:
            continue
        ngram = response_ids[end - length : end]
        if ngram in seen:
            is_repeated_T[end - 1] = True
        seen.add(ngram)
    return is_repeated_T
