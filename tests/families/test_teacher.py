"""Every family as a teacher, through a real gRPC server, against transformers alone: exact, or refused in words."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.families.expected import EXPECTED
from tests.families.listed import LISTED
from tests.families.outcome import FAILED, Outcome, outcome_of
from tests.families.parameters import each_family
from tests.families.zoo import FAMILIES, Family


@pytest.mark.parametrize("family", each_family())
async def test_a_teacher_is_exact_or_refused(family: Family, tmp_path: Path, outcomes: dict[str, Outcome]) -> None:
    outcomes[family.name] = FAILED
    outcomes[family.name] = outcome = await outcome_of(family, tmp_path)
    assert outcome.kind == EXPECTED.get(family.name, outcome.kind), outcome


def test_the_document_tells_of_every_family(told: str) -> None:
    rows = [line.split(" | ") for line in told.splitlines() if line.startswith("| ") and line.count(" | ") == 4]
    kinds = {row[0].removeprefix("| "): row[2] for row in rows[1:]}
    assert kinds.keys() == FAMILIES.keys(), "make test-families writes it anew"
    assert {name: kinds[name] for name in EXPECTED} == EXPECTED


def test_the_document_tells_why_a_family_is_not_built(told: str) -> None:
    lines = told.splitlines()
    assert all(f"- {name}: {reason}" in lines for name, reason in LISTED.items())
