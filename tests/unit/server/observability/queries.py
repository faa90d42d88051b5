"""Which metrics and labels a PromQL query names. Reads the part of the language that our dashboard and alerts use."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

_METRIC = re.compile(r"\b((?:preceptor|process|gen_ai|up)_?[a-z_]*)\b(?:\{([^}]*)\})?")
_MATCHER = re.compile(r"\s*([a-zA-Z_][a-zA-Z0-9_]*)\s*(?:=~|!~|!=|=)\s*\"[^\"]*\"\s*(?:,|$)")
_GROUPING = re.compile(r"\b(?:by|without|on|ignoring|group_left|group_right)\s*\(([^)]*)\)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Use:
    """One selector of a query, with the labels that its matchers and the query's groupings name."""

    metric: str
    labels: frozenset[str]


def uses(query: str) -> Iterator[Use]:
    grouped = {label.strip() for group in _GROUPING.findall(query) for label in group.split(",") if label.strip()}
    rest = _GROUPING.sub(" ", query)
    for name, matchers in _METRIC.findall(rest):
        found = _MATCHER.findall(matchers)
        assert not _MATCHER.sub("", matchers).strip(), f"{matchers} is not read whole"
        yield Use(metric=name, labels=frozenset({*found, *grouped}))
