"""A plot as plotly.js reads it, and how curves become one. Colours are names of the stylesheet: "--c0"."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from preceptor_client.train.record.metrics import MetricRow, MetricValue
from preceptor_client.train.report.plots import Band, Curve, Plot, Scale

Plotly = dict[str, Any]  # Any: whatever plotly.js reads

NUM_COLOURS = 8
"""In the stylesheet, for light and for dark."""
_DASHES = ("solid", "dash", "dot")


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One plot, and the sentences that say how to read it."""

    title: str
    caption: str
    traces: list[Plotly]
    layout: Plotly


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """Figures about one question."""

    title: str
    intro: str
    figures: list[Figure]

    @property
    def anchor(self) -> str:
        return self.title.lower().replace(" ", "-")


def figure_of(plot: Plot, rows: Sequence[MetricRow], *, reference: Sequence[MetricRow] = ()) -> Figure | None:
    """The plot over the steps of one run; None where the run measured nothing of it. `reference` are the rows of
    `plot.reference`."""
    curves = [(index, curve) for index, curve in enumerate(plot.curves) if is_measured(rows, curve.key)]
    if not curves:
        return None
    traces = [trace for band in plot.bands if is_measured(rows, band.low, band.high) for trace in _band(rows, band)]
    for index, curve in curves:
        traces.append(_bars(rows, curve, colour=index) if plot.is_stacked else line(rows, curve, colour=index))
    traces += [level(rows, reference[0].get(curve.key), name=plot.reference_name) for _, curve in curves if reference]
    return Figure(title=plot.title, caption=plot.caption, traces=traces, layout=layout_of(plot))


def layout_of(plot: Plot) -> Plotly:
    """Axes as the plot's scale says."""
    layout: Plotly = {"xaxis": {"title": {"text": "step"}}, "yaxis": axis(plot.scale)}
    if len(plot.curves) > 1:
        layout["showlegend"] = True
    if plot.is_stacked:
        layout |= {"barmode": "stack", "bargap": 0.15}
    return layout


def axis(scale: Scale) -> Plotly:
    """`share` is 0 to 1 in percent, `zero` begins at 0, `free` is as the numbers are."""
    if scale == "share":
        return {"range": [-0.02, 1.02], "tick0": 0, "dtick": 0.25, "tickformat": ".0%", "hoverformat": ".2%"}
    return {"rangemode": "tozero"} if scale == "zero" else {}


def is_measured(rows: Iterable[MetricRow], *keys: str) -> bool:
    """Whether every key has a number in some row; metrics that are younger than a run, or do not apply, have none."""
    held = list(rows)
    return all(any(row.get(key) is not None for row in held) for key in keys)


def line(rows: Sequence[MetricRow], curve: Curve, *, colour: int, name: str | None = None) -> Plotly:
    """A line with a gap where nothing was measured, a marker where points are few; colours repeat, dashed."""
    return {
        "type": "scatter",
        "mode": "lines+markers" if len(rows) <= 12 else "lines",
        "name": curve.name if name is None else name,
        "line": {"color": colour_name(colour), "width": 2, "dash": _DASHES[colour // NUM_COLOURS % len(_DASHES)]},
        "marker": {"size": 5},
        **points(rows, curve.key),
    }


def points(rows: Sequence[MetricRow], key: str) -> Plotly:
    return {"x": [row["step"] for row in rows], "y": [row.get(key) for row in rows]}


def colour_name(index: int) -> str:
    return f"--c{index % NUM_COLOURS}"


def _bars(rows: Sequence[MetricRow], curve: Curve, *, colour: int) -> Plotly:
    return {"type": "bar", "name": curve.name, "marker": {"color": colour_name(colour)}, **points(rows, curve.key)}


def level(rows: Sequence[MetricRow], value: MetricValue, *, name: str, colour: int | None = None) -> Plotly:
    """The same value from the first row's step to the last one's; grey without a colour."""
    return {
        "type": "scatter",
        "mode": "lines",
        "name": name,
        "line": {"color": "--soft" if colour is None else colour_name(colour), "width": 2, "dash": "dot"},
        "x": [rows[0]["step"], rows[-1]["step"]],
        "y": [value, value],
    }


def _band(rows: Sequence[MetricRow], band: Band) -> list[Plotly]:
    edge: Plotly = {"type": "scatter", "mode": "lines", "line": {"width": 0}}
    whole = [row for row in rows if row.get(band.low) is not None and row.get(band.high) is not None]
    return [
        {**edge, "showlegend": False, "hoverinfo": "skip", **points(whole, band.low)},
        {**edge, "name": band.name, "fill": "tonexty", "fillcolor": band.colour, **points(whole, band.high)},
    ]


def ends_of(steps: Sequence[int]) -> list[int]:
    """The first and the last, once where they are one."""
    return [steps[0], steps[-1]] if len(steps) > 1 else list(steps)


def number_of(value: object) -> float:
    """A count of a row; 0 where it has none."""
    return float(value) if isinstance(value, int | float) else 0.0
