"""Writes a run's report: one HTML file with its plots inside, which needs no network. Knows nothing of training."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from preceptor_client.train.agreement import alignment_rows
from preceptor_client.train.metrics import METRICS_FILE, MetricRow, read_rows
from preceptor_client.train.run_directory import CONFIG_FILE
from preceptor_client.train.summary import RunSummary

_TEMPLATES = Path(__file__).parent / "templates"

Plotly = dict[str, Any]  # Any: whatever plotly.js reads


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One plot, and the sentence that says how to read it."""

    title: str
    caption: str
    traces: list[Plotly]
    layout: Plotly


def write_report(path: Path, *, run: RunSummary) -> None:
    """Reads the run's metrics and settings, and writes the report to `path`."""
    from plotly.offline import get_plotlyjs

    rows = read_rows(run.directory / METRICS_FILE)
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    html = environment.get_template("report.html.j2").render(
        run=run,
        settings=tomllib.loads((run.directory / CONFIG_FILE).read_text(encoding="utf-8")),
        alignment=alignment_rows(run.directory),
        figures=_figures(rows),
        plotly_js=get_plotlyjs(),
    )
    path.write_text(html, encoding="utf-8")


def _figures(rows: Sequence[MetricRow]) -> list[Figure]:
    steps = [row for row in rows if row["kind"] == "step"]
    heldout = [row for row in rows if row["kind"] == "heldout"]
    figures = [_loss_figure(steps)]
    if losses := [row for row in heldout if "loss" in row]:
        figures.append(_heldout_loss_figure(losses))
    if answered := [row for row in heldout if "accuracy" in row]:
        figures.append(_heldout_figure(answered, [row for row in rows if row["kind"] == "heldout_teacher"]))
    figures += [_coverage_figure(steps), _length_figure(steps), _seconds_figure(steps)]
    counted = [row for row in steps if "scored_share" in row]
    if any(row["scored_share"] != 1.0 for row in counted):
        figures.append(_scored_share_figure(counted))
    return figures


def _loss_figure(steps: Sequence[MetricRow]) -> Figure:
    return Figure(
        title="Loss",
        caption="Reverse KL of the student to the teacher inside the teacher's top K tokens, nats per position.",
        traces=[_line(steps, "loss", name="loss")],
        layout={"yaxis": {"rangemode": "tozero"}},
    )


def _coverage_figure(steps: Sequence[MetricRow]) -> Figure:
    return Figure(
        title="Coverage",
        caption="Probability that each side gives to the teacher's top K tokens, and the share of the student's "
        "tokens outside them. The loss sees only what lies inside.",
        traces=[
            _line(steps, "teacher_mass", name="teacher"),
            _line(steps, "student_mass", name="student"),
            _line(steps, "outside_share", name="sampled outside"),
        ],
        layout={"yaxis": {"range": [-0.02, 1.02], "tickformat": ".0%"}},
    )


def _length_figure(steps: Sequence[MetricRow]) -> Figure:
    return Figure(
        title="Response length",
        caption="Mean tokens per rollout, and the share of rollouts that were cut before they ended.",
        traces=[
            _line(steps, "mean_response_length", name="tokens"),
            {**_line(steps, "truncated_share", name="cut"), "yaxis": "y2"},
        ],
        layout={
            "yaxis": {"rangemode": "tozero"},
            "yaxis2": {
                "overlaying": "y",
                "side": "right",
                "range": [-0.02, 1.02],
                "tickvals": [0, 0.5, 1],
                "tickformat": ".0%",
            },
        },
    )


def _seconds_figure(steps: Sequence[MetricRow]) -> Figure:
    return Figure(
        title="Seconds per step",
        caption="Where the time went: the student writing, waiting for the teacher's last scores, and the update.",
        traces=[
            _bars(steps, "rollout_seconds", name="rollout"),
            _bars(steps, "score_wait_seconds", name="waiting for scores"),
            _bars(steps, "train_seconds", name="update"),
        ],
        layout={"barmode": "stack", "bargap": 0.15},
    )


def _heldout_figure(heldout: Sequence[MetricRow], teacher: Sequence[MetricRow]) -> Figure:
    traces = [{**_line(heldout, "accuracy", name="student"), "mode": "lines+markers"}]
    if teacher:
        ends = [heldout[0]["step"], heldout[-1]["step"]]
        traces.append(
            {
                "type": "scatter",
                "mode": "lines",
                "name": "untrained, with the teacher's prompts",
                "x": ends,
                "y": [teacher[0]["accuracy"]] * 2,
                "line": {"dash": "dot"},
            }
        )
    return Figure(
        title="Held-out accuracy",
        caption="Share of held-out examples that are answered right, greedily.",
        traces=traces,
        layout={"yaxis": {"range": [-0.02, 1.02], "tickformat": ".0%"}},
    )


def _heldout_loss_figure(heldout: Sequence[MetricRow]) -> Figure:
    return Figure(
        title="Held-out loss",
        caption="The same loss on held-out examples, each rolled out once by the same draws; nats per position.",
        traces=[{**_line(heldout, "loss", name="loss"), "mode": "lines+markers"}],
        layout={"yaxis": {"rangemode": "tozero"}},
    )


def _scored_share_figure(steps: Sequence[MetricRow]) -> Figure:
    return Figure(
        title="Positions with a score",
        caption="Share of the positions asked for that the loss can use, and the teacher's probability that has no "
        "place in the student's vocabulary.",
        traces=[
            _line(steps, "scored_share", name="positions with a score"),
            _line(steps, "unmapped_mass", name="unmapped probability"),
        ],
        layout={"yaxis": {"range": [-0.02, 1.02], "tickformat": ".0%"}},
    )


def _line(rows: Sequence[MetricRow], key: str, *, name: str) -> Plotly:
    return {"type": "scatter", "mode": "lines", "name": name, **_points(rows, key)}


def _bars(rows: Sequence[MetricRow], key: str, *, name: str) -> Plotly:
    return {"type": "bar", "name": name, **_points(rows, key)}


def _points(rows: Sequence[MetricRow], key: str) -> Plotly:
    return {"x": [row["step"] for row in rows], "y": [row[key] for row in rows]}
