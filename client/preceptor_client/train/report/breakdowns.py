"""Plots of one run by position, by turn, by task and by teacher, from the rows of kind "breakdown"."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from preceptor_client.train.record.metrics import MetricRow
from preceptor_client.train.report.figures import (
    NUM_COLOURS,
    Figure,
    Plotly,
    axis,
    colour_name,
    ends_of,
    is_measured,
    line,
    number_of,
)
from preceptor_client.train.report.plots import Curve, Scale

_GroupPlot = tuple[Curve, Scale, str, str]
_TASK_PLOTS: tuple[_GroupPlot, ...] = (
    (Curve(key="loss", name="loss"), "zero", "Loss by task", "Nats per position. Healthy: every task falls."),
    (
        Curve(key="gap", name="gap"),
        "free",
        "Signal by task",
        "Mean of log q − log p over a task's tokens, nats. Healthy: every task rises toward 0; one that stays far "
        "below is beyond the student, or the teacher.",
    ),
    (
        Curve(key="student_mass", name="student's mass"),
        "share",
        "Student's mass by task",
        "The student's probability inside the tokens compared. Healthy: near 100% for every task.",
    ),
    (
        Curve(key="mean_reward", name="reward"),
        "free",
        "Reward by task",
        "Mean over a task's episodes. Healthy: every task rises.",
    ),
)
_TEACHER_PLOTS: tuple[_GroupPlot, ...] = (
    (
        Curve(key="gap", name="gap"),
        "free",
        "Signal by teacher",
        "Mean of log q − log p over the tokens that a teacher scored, q its own and not the mixture, nats. Healthy: "
        "every teacher rises toward 0; one that falls while others rise is at odds with them.",
    ),
    (
        Curve(key="mean_weight", name="weight"),
        "share",
        "Weight by teacher",
        "How much a teacher counts beside others, over the tokens that it scored. Healthy: as the settings say; a part "
        "that weighs position by position may move it.",
    ),
    (
        Curve(key="outside_share", name="outside"),
        "share",
        "Tokens outside a teacher's top K",
        "Share of the student's tokens that are not among a teacher's likeliest. Healthy: low for every teacher.",
    ),
    (
        Curve(key="end_agreement", name="agreement"),
        "share",
        "Agreement on the end by teacher",
        "Where the student ended: how often ending is a teacher's first choice too. Healthy: high for every teacher; "
        "at 0 from the start, end tokens are not paired with that teacher's.",
    ),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Buckets:
    """How the plots over buckets of one kind are worded."""

    by: str
    axis: str
    signal: str
    repetition: str


_POSITIONS = _Buckets(
    by="position",
    axis="position in the response",
    signal="log q − log p by position in the response: the mean, with bars from 5% to 95% of the tokens. "
    "Healthy: alike at every length. Longer bars downward at later positions: guidance gets unreliable "
    "there.",
    repetition="Share of tokens that complete four in a row seen before in the response, by position. "
    "Healthy: rises a little with length, as all text does; a steep rise is a loop.",
)
_TURNS = _Buckets(
    by="turn",
    axis="turn of the student",
    signal="log q − log p by the student's turn: the mean, with bars from 5% to 95% of the tokens. Healthy: alike in "
    "every turn. Lower at later turns: the teacher would not have led the conversation there.",
    repetition="Share of tokens that complete four in a row that the student wrote before in the episode, by turn. "
    "Healthy: moderate, for calls of a tool look alike; near 100%, the student says the same again and again.",
)


def position_figures(breakdowns: Sequence[MetricRow]) -> list[Figure]:
    """The gap and the repetition by position in the response, at the first and the last step that measured them."""
    return _bucket_figures(breakdowns, _POSITIONS)


def turn_figures(breakdowns: Sequence[MetricRow]) -> list[Figure]:
    """The same by turn."""
    return _bucket_figures(breakdowns, _TURNS)


def task_figures(breakdowns: Sequence[MetricRow]) -> list[Figure]:
    """A line per task; the tasks with the most positions where they are more than there are colours."""
    return _group_figures(breakdowns, _TASK_PLOTS, by="task")


def teacher_figures(breakdowns: Sequence[MetricRow]) -> list[Figure]:
    """A line per teacher, likewise."""
    return _group_figures(breakdowns, _TEACHER_PLOTS, by="teacher")


def _bucket_figures(breakdowns: Sequence[MetricRow], buckets: _Buckets) -> list[Figure]:
    rows = [row for row in breakdowns if row["by"] == buckets.by]
    ends = _first_and_last(rows)
    groups = sorted({str(row["group"]) for row in rows}, key=lambda group: int(group.split("-")[0]))
    x_axis = _bucket_axis(groups, title=buckets.axis)
    figures = []
    if is_measured(rows, "gap"):
        figures.append(
            Figure(
                title=f"Signal by {buckets.by}",
                caption=buckets.signal,
                traces=[
                    _gap_points(step, groups=groups, colour=index)
                    for index, step in enumerate(ends)
                    if is_measured(step, "gap")
                ],
                layout={"xaxis": x_axis, "yaxis": axis("free"), "hovermode": "closest"},
            )
        )
    if is_measured(rows, "repeated_share"):
        figures.append(
            Figure(
                title=f"Repetition by {buckets.by}",
                caption=buckets.repetition,
                traces=[
                    _share_bars(step, "repeated_share", groups=groups, colour=index) for index, step in enumerate(ends)
                ],
                layout={"xaxis": x_axis, "yaxis": {"rangemode": "tozero", "tickformat": ".0%"}},
            )
        )
    return figures


def _group_figures(breakdowns: Sequence[MetricRow], plots: Sequence[_GroupPlot], *, by: str) -> list[Figure]:
    rows = [row for row in breakdowns if row["by"] == by]
    sizes: dict[str, float] = {}
    for row in rows:
        sizes[str(row["group"])] = sizes.get(str(row["group"]), 0.0) + number_of(row.get("num_positions"))
    shown = sorted(sorted(sizes, key=lambda group: -sizes[group])[:NUM_COLOURS])
    left = f" The {NUM_COLOURS} {by}s with the most positions of {len(sizes)}." if len(sizes) > NUM_COLOURS else ""
    figures = []
    for curve, scale, title, caption in plots:
        if is_measured(rows, curve.key):
            traces = [
                line([row for row in rows if row["group"] == group], curve, colour=index, name=group)
                for index, group in enumerate(shown)
            ]
            layout: Plotly = {"xaxis": {"title": {"text": "step"}}, "yaxis": axis(scale), "showlegend": True}
            figures.append(Figure(title=title, caption=caption + left, traces=traces, layout=layout))
    return figures


def _gap_points(rows: Sequence[MetricRow], *, groups: Sequence[str], colour: int) -> Plotly:
    rows = [row for row in rows if row.get("gap") is not None]
    trace: Plotly = {
        "type": "scatter",
        "mode": "lines+markers",
        "name": f"step {rows[0]['step']}",
        # A little apart, so that the bars of two steps do not hide each other.
        "x": [groups.index(str(row["group"])) + 0.08 * colour for row in rows],
        "text": [row["group"] for row in rows],
        "y": [row["gap"] for row in rows],
        "line": {"color": colour_name(colour), "width": 2},
        "marker": {"size": 6},
    }
    if is_measured(rows, "gap_q05", "gap_q95"):
        gaps, lows, highs = ([number_of(row.get(key)) for row in rows] for key in ("gap", "gap_q05", "gap_q95"))
        trace["error_y"] = {
            "type": "data",
            "symmetric": False,
            "array": [high - gap for high, gap in zip(highs, gaps, strict=True)],
            "arrayminus": [gap - low for low, gap in zip(lows, gaps, strict=True)],
            "thickness": 1.2,
            "width": 4,
        }
    return trace


def _share_bars(rows: Sequence[MetricRow], key: str, *, groups: Sequence[str], colour: int) -> Plotly:
    return {
        "type": "bar",
        "name": f"step {rows[0]['step']}",
        "marker": {"color": colour_name(colour)},
        "x": [groups.index(str(row["group"])) for row in rows],
        "y": [row.get(key) for row in rows],
    }


def _bucket_axis(groups: Sequence[str], *, title: str) -> Plotly:
    """Buckets side by side, in the order of their first position or turn."""
    return {
        "title": {"text": title},
        "tickvals": list(range(len(groups))),
        "ticktext": list(groups),
        "range": [-0.5, len(groups) - 0.5],
    }


def _first_and_last(rows: Sequence[MetricRow]) -> list[list[MetricRow]]:
    steps = ends_of(sorted({int(number_of(row["step"])) for row in rows}))
    return [[row for row in rows if row["step"] == step] for step in steps]
