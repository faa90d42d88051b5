"""Counters, gauges and histograms, and their text for Prometheus (text format 0.0.4). Knows no name of a metric.

Each child holds the beginning of its line, labels included, so that a scrape only adds the value: a thousand children
take under a millisecond, where prometheus_client takes tens. Values change in one thread at a time (the owner holds a
lock); a scrape reads them from any thread and needs none.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

Kind = Literal["counter", "gauge", "histogram"]
Labels = tuple[str, ...]

MEDIA_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Family:
    """All children of one name. A child stands for one combination of label values."""

    def __init__(self, name: str, help_text: str, label_names: Sequence[str] = (), *, kind: Kind) -> None:
        self.name = name
        self.help = help_text
        self.label_names = tuple(label_names)
        self.kind = kind

    @property
    def sample_names(self) -> tuple[str, ...]:
        """What a query may name."""
        return (self.name,)

    def write(self, lines: list[str]) -> None:
        """Appends the samples, one line each, each with its line feed."""
        raise NotImplementedError

    def head(self) -> str:
        return f"# HELP {self.name} {_escape_help(self.help)}\n# TYPE {self.name} {self.kind}\n"

    def _line_start(self, labels: Labels, *, suffix: str = "", more: str = "") -> str:
        assert len(labels) == len(self.label_names), f"{self.name} has labels {self.label_names}, not {labels}"
        pairs = [f'{name}="{_escape(value)}"' for name, value in zip(self.label_names, labels, strict=True)]
        if more:
            pairs.append(more)
        return f"{self.name}{suffix}{{{','.join(pairs)}}} " if pairs else f"{self.name}{suffix} "


class Value:
    """A number that changes."""

    __slots__ = ("line_start", "value")

    def __init__(self, line_start: str) -> None:
        self.line_start = line_start
        self.value: float = 0


class Values(Family):
    """A counter, or a gauge that is set where something happens."""

    def __init__(self, name: str, help_text: str, label_names: Sequence[str] = (), *, kind: Kind = "counter") -> None:
        super().__init__(name, help_text, label_names, kind=kind)
        self._children: dict[Labels, Value] = {}

    def at(self, *labels: str) -> Value:
        child = self._children.get(labels)
        if child is None:
            child = self._children[labels] = Value(self._line_start(labels))
        return child

    def write(self, lines: list[str]) -> None:
        lines.extend([f"{child.line_start}{child.value}\n" for child in list(self._children.values())])


class ReadGauge(Family):
    """A gauge whose values are read for each scrape, all of them together. What is not read any more is gone."""

    def __init__(self, name: str, help_text: str, label_names: Sequence[str] = (), *, kind: Kind = "gauge") -> None:
        super().__init__(name, help_text, label_names, kind=kind)
        self._line_starts: dict[Labels, str] = {}
        self._values: Mapping[Labels, float] = {}

    def read(self, values: Mapping[Labels, float]) -> None:
        """Replaces all values."""
        self._line_starts = {
            labels: self._line_starts.get(labels) or self._line_start(labels) for labels in values
        }  # fmt: skip
        self._values = values

    def write(self, lines: list[str]) -> None:
        starts, values = self._line_starts, self._values
        lines.extend([f"{starts.get(labels) or self._line_start(labels)}{values[labels]}\n" for labels in values])


class Distribution:
    """Observations in buckets."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        """Observations above the bound before and up to this one; the last: above all."""
        self.total = 0.0

    def observe(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value


class Histogram(Family):
    """Distributions by label."""

    def __init__(self, name: str, help_text: str, label_names: Sequence[str] = (), *, bounds: Sequence[float]) -> None:
        super().__init__(name, help_text, label_names, kind="histogram")
        self._bounds = tuple(bounds)
        self._children: dict[Labels, Distribution] = {}
        self._line_starts: dict[Labels, list[str]] = {}

    @property
    def sample_names(self) -> tuple[str, ...]:
        return tuple(f"{self.name}_{suffix}" for suffix in ("bucket", "sum", "count"))

    def at(self, *labels: str) -> Distribution:
        child = self._children.get(labels)
        if child is None:
            child = Distribution(self._bounds)
            self.show(child, *labels)
        return child

    def has(self, *labels: str) -> bool:
        return labels in self._children

    def show(self, child: Distribution, *labels: str) -> None:
        """Makes `child` this family's, so that one distribution can stand under two names."""
        ends = [*(f"{bound:g}" for bound in self._bounds), "+Inf"]
        starts = [self._line_start(labels, suffix="_bucket", more=f'le="{end}"') for end in ends]
        starts += [self._line_start(labels, suffix=suffix) for suffix in ("_sum", "_count")]
        self._line_starts[labels] = starts  # before the child: a scrape goes by the children
        self._children[labels] = child

    def write(self, lines: list[str]) -> None:
        for labels, child in list(self._children.items()):
            *buckets, sum_start, count_start = self._line_starts[labels]
            num_below = 0
            for start, count in zip(buckets, list(child.counts), strict=True):
                num_below += count
                lines.append(f"{start}{num_below}\n")
            lines.append(f"{sum_start}{child.total}\n{count_start}{num_below}\n")


def render(families: Iterable[Family]) -> bytes:
    """What a scrape gets. A family without children is left out."""
    lines: list[str] = []
    for family in families:
        head = len(lines)
        lines.append(family.head())
        family.write(lines)
        if len(lines) == head + 1:
            lines.pop()
    return "".join(lines).encode(errors="replace")


def _escape(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _escape_help(text: str) -> str:
    return text.replace("\\", "\\\\").replace("\n", "\\n")
