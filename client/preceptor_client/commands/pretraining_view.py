"""Shows what one batch of rollouts was like: as tables for people, as plain data for programs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rich.table import Table
from rich.text import Text as Cell

from preceptor_client.commands.pretraining import Pretraining
from preceptor_client.train.instruments.bounds import Level
from preceptor_client.train.instruments.measures import GAP_QUANTILES, Measures
from preceptor_client.train.instruments.verdicts import Failure, Verdict
from preceptor_client.train.record.metrics import MetricRow, MetricValue

_COLOURS = {Level.OK: "green", Level.WARN: "yellow", Level.FAIL: "red"}
MEASURES_OF = {
    Failure.SIGNAL: (
        *("student_mass", "teacher_mass", "outside_share", "overlap", "student_entropy", "teacher_entropy"),
        *("student_logprob", "teacher_logprob", "gap", *(f"gap_{name}" for name in GAP_QUANTILES)),
        *("positive_share", "positive_weight"),
    ),
    Failure.PREFIXES: ("repeated_share", "repeated_teacher_probability", "truncated_share", "missed_ends"),
    Failure.TOKENS: (
        *("confident_disagreements", "no_teacher_probability", "end_agreement", "end_teacher_logprob"),
        "scored_end_share",
    ),
}
"""What tells of which failure mode; docs/instruments.md says what each is."""
_SHOWN_BY_GROUP = (
    *("num_positions", "gap_q05", "gap_q50", "gap_q95", "outside_share", "student_entropy", "teacher_entropy"),
    *("repeated_share", "truncated_share"),
)


def tables(found: Pretraining) -> list[Table]:
    """The measures by failure mode, the same by position and, where prompts name one, by task, and the verdicts."""
    shown = [measure_table(found.measures), group_table(found.by_position, title="by position in the response")]
    if found.by_task:
        shown.append(group_table(found.by_task, title="by task"))
    return [*shown, verdict_table(found.verdicts)]


def measure_table(measures: Measures) -> Table:
    """One row per measure."""
    table = Table("failure", "measure", "value", title="measured before training")
    for failure, names in MEASURES_OF.items():
        for index, name in enumerate(names):
            table.add_row(failure if index == 0 else "", name, _text(measures[name]), end_section=name == names[-1])
    return table


def group_table(rows: Sequence[MetricRow], *, title: str) -> Table:
    """One column per group of positions: there are few, and the measures' names are long."""
    table = Table("measure", title=title)
    for row in rows:
        # A cell rather than markup: a task's name may hold "[".
        table.add_column(Cell(str(row["group"])))
    for name in _SHOWN_BY_GROUP:
        table.add_row(name, *(_text(row[name]) for row in rows))
    return table


def verdict_table(verdicts: Sequence[Verdict]) -> Table:
    """One row per verdict, and what to set below each that is not ok."""
    table = Table("failure", "verdict", "found and what to set", title="what to expect of training")
    for verdict in verdicts:
        detail = Cell(verdict.found)
        if verdict.change:
            detail.append(f"\n-> {verdict.change}", style="bold")
        table.add_row(verdict.failure, Cell(verdict.level, style=_COLOURS[verdict.level]), detail)
    return table


def as_plain(found: Pretraining) -> dict[str, Any]:  # Any: the leaves are whatever JSON holds
    """All of it for programs, under its own names."""
    return asdict(found)


def _text(value: MetricValue) -> str:
    if value is None:
        return "-"
    return f"{value:.3f}" if isinstance(value, float) else str(value)
