"""Metrics of held-out answers: the seam for a user's own, and the built-in ones. Knows nothing of when to measure."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from typing import Protocol, Self

from preceptor_client.train.data.answer_match import Match, is_match
from preceptor_client.train.data.excerpts import excerpt, message_of
from preceptor_client.train.errors import InvalidPartError
from preceptor_client.train.evaluation.evaluate import Answer
from preceptor_client.train.parts import PartConfig, Seam
from preceptor_client.train.record.metrics import HELDOUT_NAMES, MetricRow

_log = logging.getLogger(__name__)


class Metric(Protocol):
    """Measures all answers of one measurement. One class, named in TOML: [[evaluation.metrics]] kind = "pkg:Name"."""

    def measure(self, answers: Sequence[Answer]) -> Mapping[str, float]:
        """Numbers by name, for the held-out row. One that is NaN or infinite is written as null."""
        ...


METRIC: Seam[Metric] = Seam(
    what="a metric",
    protocol=Metric,
    builtins={"match": "preceptor_client.train.evaluation.metric:MatchMetric"},
)


class MatchMetric:
    """The share of answers that match one of those expected, by another rule than `evaluation.match`."""

    def __init__(self, how: Match) -> None:
        """`how` an answer must relate to an expected one; the number is called match_ and this."""
        self._how: Match = how

    def measure(self, answers: Sequence[Answer]) -> Mapping[str, float]:
        """As `Metric.measure`."""
        right = [
            any(is_match(answer.answer, expected=one, match=self._how) for one in answer.example.answers)
            for answer in answers
        ]
        return {f"match_{self._how}": sum(right) / len(right)}


class HeldoutMetrics:
    """Those of a run, each under the key that names it."""

    def __init__(self, metrics: Mapping[str, Metric]) -> None:
        """By key, for messages: "evaluation.metrics[0].kind='match'"."""
        self._metrics = metrics

    @classmethod
    def of(cls, configs: Sequence[PartConfig], *, key: str = "evaluation.metrics") -> Self:
        """Those that the settings name. Raises InvalidPartError, which names the key."""
        return cls(
            {
                f"{key}[{place}].kind={config.kind!r}": METRIC.make(
                    config.kind, config.options, key=f"{key}[{place}].kind"
                )
                for place, config in enumerate(configs)
            }
        )

    def __bool__(self) -> bool:
        return bool(self._metrics)

    def measure(self, answers: Sequence[Answer]) -> MetricRow:
        """All their numbers. Raises InvalidPartError, which names the key, where a metric fails, gives something else
        than numbers by name, or gives a name that the row has already."""
        row: MetricRow = {}
        for key, metric in self._metrics.items():
            try:
                given = metric.measure(answers)
            except Exception as error:  # a user's metric may fail with anything
                raise InvalidPartError(f"{key} failed: {message_of(error)}") from error
            if not isinstance(given, Mapping):
                raise InvalidPartError(f"{key} gave {excerpt(given)}: return a dict of numbers by name")
            for name, value in given.items():
                if name in HELDOUT_NAMES or name in row:
                    whose = "the held-out row's own" if name in HELDOUT_NAMES else "another metric's"
                    raise InvalidPartError(f"{key} gave {name!r}, which is {whose} name: choose another")
                row[name] = _number(name, value, key=key)
        return row


def _number(name: object, value: object, *, key: str) -> float | None:
    try:
        number = float(value)  # type: ignore[arg-type]  # whatever a user's metric gave
    except (TypeError, ValueError, OverflowError) as error:
        raise InvalidPartError(f"{key} gave {excerpt(value)} for {excerpt(name)}: return a number") from error
    if not isinstance(name, str) or isinstance(value, str):
        raise InvalidPartError(f"{key} gave {excerpt(value)} for {excerpt(name)}: return numbers by name")
    if not math.isfinite(number):
        _log.warning("a metric is not finite: key=%s name=%s value=%s", key, name, number)
        return None
    return number
