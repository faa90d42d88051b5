"""Shows what `preceptor doctor` found: as tables for people, as plain data for programs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text as Cell

from preceptor_client.commands import alignment_view, pretraining_view
from preceptor_client.commands.checks import Check, Outcome
from preceptor_client.commands.pretraining import Pretraining
from preceptor_client.commands.student_exam import StudentExam, probe_as_plain

_COLOURS = {Outcome.OK: "green", Outcome.WARN: "yellow", Outcome.FAIL: "red", Outcome.SKIPPED: "dim"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Examination:
    """All that was found."""

    checks: tuple[Check, ...]
    student: StudentExam | None = None
    """None where no student was named, or the server could not be asked."""
    pretraining: Pretraining | None = None
    """None where no prompts were named, or the student could not answer them."""


def show(found: Examination, *, console: Console) -> None:
    """The table of checks, that of the paired tokens where there are some, and those of a batch of rollouts."""
    console.print(check_table(found.checks))
    report = found.student.report if found.student else None
    if report is not None and report.paired:
        console.print(alignment_view.pair_table(report))
    if found.pretraining is not None:
        for table in pretraining_view.tables(found.pretraining):
            console.print(table)


def as_plain(found: Examination) -> dict[str, Any]:  # Any: the leaves are whatever JSON holds
    """What was found, for programs: checks, alignment, student_probe and pretraining; all but the first are null where
    there is none."""
    report = found.student.report if found.student else None
    probed = found.student.probe if found.student else None
    return {
        "checks": [asdict(check) for check in found.checks],
        "alignment": None if report is None else alignment_view.as_plain(report),
        "student_probe": None if probed is None else probe_as_plain(probed),
        "pretraining": None if found.pretraining is None else pretraining_view.as_plain(found.pretraining),
    }


def check_table(found: Iterable[Check]) -> Table:
    """One row per check, and what to change below each that is not ok."""
    table = Table("check", "outcome", "found and what to change")
    for check in found:
        # Cells rather than markup: "[" in a model's name shall show.
        detail = Cell(check.found)
        if check.change:
            detail.append(f"\n-> {check.change}", style="bold")
        table.add_row(check.name, Cell(check.outcome, style=_COLOURS[check.outcome]), detail)
    return table
