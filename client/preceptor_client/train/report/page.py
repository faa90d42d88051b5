"""Rows in, one HTML file out. The page forbids itself the network: what it needs is inside."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs
from preceptor.wire import PositionStatus

from preceptor_client.train.record.metrics import MetricRow
from preceptor_client.train.record.summary import RunSummary
from preceptor_client.train.report import breakdowns, comparison, tokens
from preceptor_client.train.report.curves import LEARNING, LENGTH, SIGNALS, TIME, TOKENS, TOPICS
from preceptor_client.train.report.figures import Figure, Section
from preceptor_client.train.report.heldout_figures import heldout_figure, own_figures
from preceptor_client.train.report.links import OtherPage, links_of
from preceptor_client.train.report.plots import Topic
from preceptor_client.train.report.rundata import RunData, data_of, flat_settings
from preceptor_client.train.report.voices import voice_of

_TEMPLATES = Path(__file__).parent / "templates"
_STATUSES = tuple(status.name.lower() for status in PositionStatus)


def write_report(path: Path, *, run: RunSummary, other_page: OtherPage | None = None) -> None:
    """Reads what the run left in its folder, and writes its report to `path`. Rollouts are linked to the page of the
    run's teacher or, instead, to another."""
    data = data_of(run)
    _write(
        path,
        template="report.html.j2",
        run=run,
        data=data,
        sections=sections_of(data),
        settings=flat_settings(data.settings),
        links=[asdict(link) for link in links_of(data, instead=other_page)],
        voices=[asdict(voice_of(row, settings=data.settings)) for row in data.rollouts],
    )


def write_comparison(path: Path, *, runs: Sequence[RunData]) -> None:
    """Writes several runs side by side to `path`."""
    outcomes = comparison.outcomes_of(runs)
    _write(
        path,
        template="comparison.html.j2",
        outcomes=outcomes,
        sections=comparison.overlaid(outcomes),
        differing=comparison.differing_settings(runs),
    )


def sections_of(run: RunData) -> list[Section]:
    """The plots of one run, by topic; a topic without a plot is left out."""
    sections = []
    for topic in TOPICS:
        if topic is TIME:
            sections += _group_sections(run.of_kind("breakdown"))
        plotted = [
            heldout_figure(plot, run.of_kind(plot.kind), reference=run.of_kind(plot.reference)) for plot in topic.plots
        ]
        figures = [figure for figure in (*plotted, *_more_figures(topic, run)) if figure]
        if figures:
            sections.append(Section(title=topic.title, intro=topic.intro, figures=figures))
    return sections


def _group_sections(rows: Sequence[MetricRow]) -> list[Section]:
    found = [
        Section(
            title="Turns",
            intro="Does the teacher's advice hold through a whole conversation?",
            figures=breakdowns.turn_figures(rows),
        ),
        Section(
            title="Tasks",
            intro="Do all kinds of examples get the same from the teacher?",
            figures=breakdowns.task_figures(rows),
        ),
        Section(
            title="Teachers",
            intro="Do the teachers agree about what the student writes, each by its own scores?",
            figures=breakdowns.teacher_figures(rows),
        ),
    ]
    return [section for section in found if section.figures]


def _more_figures(topic: Topic, run: RunData) -> list[Figure | None]:
    if topic is LEARNING:
        return [*own_figures(run.of_kind("heldout"))]
    if topic is SIGNALS:
        return [tokens.token_figure(run.rollouts)]
    if topic is LENGTH:
        return [*breakdowns.position_figures(run.of_kind("breakdown"))]
    if topic is TOKENS:
        return [tokens.status_figure(run.of_kind("step"), statuses=_STATUSES)]
    return []


def _write(path: Path, *, template: str, **values: object) -> None:
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.globals["source"] = lambda name: Markup((_TEMPLATES / name).read_text(encoding="utf-8"))
    html = environment.get_template(template).render(plotly_js=Markup(get_plotlyjs()), **values)
    # Whole or not at all: a browser may be reading the last one.
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(html, encoding="utf-8")
    os.replace(temporary, path)
