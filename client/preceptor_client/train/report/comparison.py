"""Several runs side by side: the same curves overlaid, what came out, and the settings that differ."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from preceptor_client.train.errors import RunDirectoryError
from preceptor_client.train.record.metrics import MetricRow, task_of
from preceptor_client.train.report.curves import TOPICS
from preceptor_client.train.report.figures import Figure, Section, is_measured, layout_of, line
from preceptor_client.train.report.heldout_figures import tasks_of
from preceptor_client.train.report.plots import Curve, Plot
from preceptor_client.train.report.rundata import RunData, flat_settings

_OWN_SETTINGS = ("run.directory",)
"""They differ between any two runs, and say nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """One run's row in the table of outcomes; None where it was not measured."""

    name: str
    colour: int
    run: RunData
    student_mass_first: float | None
    student_mass_last: float | None


def outcomes_of(runs: Sequence[RunData]) -> list[Outcome]:
    """One per run, in the order given; the colour is the run's in every plot."""
    outcomes = []
    for index, (name, run) in enumerate(zip(names_of([run.summary.directory for run in runs]), runs, strict=True)):
        masses = [mass for row in run.of_kind("step") if isinstance(mass := row.get("student_mass"), int | float)]
        outcomes.append(
            Outcome(
                name=name,
                colour=index,
                run=run,
                student_mass_first=masses[0] if masses else None,
                student_mass_last=masses[-1] if masses else None,
            )
        )
    return outcomes


def names_of(directories: Sequence[Path]) -> list[str]:
    """The folders' own names, with as many of their parents' as tell them apart. Raises RunDirectoryError where a
    folder is named twice."""
    resolved = [directory.resolve() for directory in directories]
    for index, directory in enumerate(resolved):
        if directory in resolved[:index]:
            raise RunDirectoryError(f"{directories[index]} is named twice: name each run once")
    depth = 1
    while len(names := {"/".join(one.parts[-depth:]) for one in resolved}) < len(resolved):
        depth += 1
    assert len(names) == len(resolved)
    return ["/".join(one.parts[-depth:]) for one in resolved]


def differing_settings(runs: Sequence[RunData]) -> list[tuple[str, list[object]]]:
    """`section.name`, and its value in each run; None where a run's settings lack it."""
    flats = [flat_settings(run.settings) for run in runs]
    keys = list(dict.fromkeys(key for flat in flats for key in flat))
    rows = [(key, [flat.get(key) for flat in flats]) for key in keys if key not in _OWN_SETTINGS]
    return [(key, values) for key, values in rows if any(value != values[0] for value in values)]


def overlaid(outcomes: Sequence[Outcome]) -> list[Section]:
    """Every curve that some run measured, one figure each, with one line per run; of held-out measurements of named
    tasks one figure per task."""
    sections = []
    for topic in TOPICS:
        figures = [figure for plot in topic.plots for figure in _overlays(plot, outcomes)]
        if figures:
            sections.append(Section(title=topic.title, intro=topic.intro, figures=figures))
    return sections


def _overlays(plot: Plot, outcomes: Sequence[Outcome]) -> list[Figure]:
    """Each curve of a plot, of each task that was measured by itself; the first figure has the plot's caption."""
    tasks = tasks_of([row for one in outcomes for row in one.run.of_kind(plot.kind)])
    drawn = [_overlay(plot, curve, outcomes, task=task) for curve in plot.curves for task in tasks]
    figures = [figure for figure in drawn if figure]
    return [replace(figure, caption="" if index else plot.caption) for index, figure in enumerate(figures)]


def _overlay(plot: Plot, curve: Curve, outcomes: Sequence[Outcome], *, task: str) -> Figure | None:
    traces = []
    for one in outcomes:
        rows: list[MetricRow] = [row for row in one.run.of_kind(plot.kind) if task_of(row) == task]
        if is_measured(rows, curve.key):
            traces.append(line(rows, curve, colour=one.colour, name=one.name))
    if not traces:
        return None
    title = plot.title if len(plot.curves) == 1 else f"{plot.title}: {curve.name}"
    layout = {key: value for key, value in layout_of(plot).items() if key in ("xaxis", "yaxis")}
    return Figure(
        title=f"{title}, {task}" if task else title,
        caption="",
        traces=traces,
        layout={**layout, "showlegend": False},
    )
