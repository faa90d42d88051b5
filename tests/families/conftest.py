"""Keeps what became of each family; once all were tried, it is written down."""

from __future__ import annotations

import pytest

from tests.families.document import PATH, document, is_complete
from tests.families.outcome import Outcome


@pytest.fixture(scope="session")
def outcomes() -> dict[str, Outcome]:
    """By the family's name; tests add to it."""
    return {}


@pytest.fixture
def told(outcomes: dict[str, Outcome]) -> str:
    """docs/families.md, written anew where every family was tried."""
    if is_complete(outcomes):
        PATH.write_text(document(outcomes))
    return PATH.read_text()
