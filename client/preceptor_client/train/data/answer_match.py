"""Compares a text with the expected answers of an example. Knows nothing of who wrote it."""

from __future__ import annotations

from typing import Literal

Match = Literal["starts_with", "contains", "exact"]


def is_match(answer: str, *, expected: str, match: Match) -> bool:
    """Whether an answer counts as right. Case counts; white space around either does not."""
    answer, expected = answer.strip(), expected.strip()
    if match == "starts_with":
        return answer.startswith(expected)
    return expected in answer if match == "contains" else answer == expected
