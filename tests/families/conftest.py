"""Keeps what became of each family; once all were tried, it is written down."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.families.document import PATH, document, is_complete
from tests.families.outcome import Outcome


@pytest.fixture(scope="session")
def outcomes() -> Iterator[dict[str, Outcome]]:
    """By the family's name."""
    collected: dict[str, Outcome] = {}
    yield collected
    if is_complete(collected):
        PATH.write_text(document(collected))
