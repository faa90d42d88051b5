"""Finds where tokens lie in a text that they do not add up to. Knows the tokens' bytes, not their tokenizer."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

Token = tuple[int, bytes]
"""An id and its bytes; a token of no bytes stands for what the vocabulary lacks."""
Placed = tuple[int, int, int, bool]
"""An id, the bytes [start, end) of the text that it covers, and whether it stands for just these bytes."""


def place_in_row(tokens: Sequence[Token]) -> list[Placed]:
    """The places of tokens that add up to the text."""
    placed, cursor = [], 0
    for token_id, token in tokens:
        placed.append((token_id, cursor, cursor + len(token), True))
        cursor += len(token)
    return placed


def place_by_offsets(tokens: Sequence[Token], offsets: Sequence[tuple[int, int]], string: str) -> list[Placed]:
    """The tokens where the library says that they stand, in characters.

    Tokens that are pieces of one character share its offsets; they follow one another. A token whose bytes are not the
    text's there, such as the one for the unknown, or an added token that took white space with it, covers what the
    library says, and does not stand for it.
    """
    text, starts = string.encode(), _byte_starts(string)
    placed, cursor = [], 0
    for (token_id, token), (first, last) in zip(tokens, offsets, strict=True):
        start, bound = (max(cursor, starts[min(offset, len(string))]) for offset in (first, last))
        end = start + len(token)
        is_known = bool(token) and end <= bound and text.startswith(token, start)
        cursor = end if is_known else bound
        placed.append((token_id, start, cursor, is_known))
    return placed


def _byte_starts(string: str) -> list[int]:
    """The byte at which each character begins, and the end of the text."""
    codes = np.frombuffer(string.encode("utf-32-le"), np.uint32)
    sizes = 1 + (codes > 0x7F).astype(np.int64) + (codes > 0x7FF) + (codes > 0xFFFF)
    starts: list[int] = np.append(0, np.cumsum(sizes)).tolist()
    return starts
