"""Families as parameters of tests: those of the reduced matrix always, all others in `make test-families`."""

from __future__ import annotations

import pytest
from _pytest.mark import ParameterSet

from tests.families.expected import EXPECTED
from tests.families.zoo import FAMILIES


def each_family() -> list[ParameterSet]:
    """One parameter per family of the zoo, under its name."""
    return [
        pytest.param(family, id=name, marks=() if name in EXPECTED else pytest.mark.families)
        for name, family in FAMILIES.items()
    ]
