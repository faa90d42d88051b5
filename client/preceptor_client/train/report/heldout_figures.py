"""Plots of the held-out measurements: one line per task where tasks have names, and the metrics that the user named."""

from __future__ import annotations

from collections.abc import Sequence

from preceptor_client.train.record.metrics import MetricRow, own_metrics, task_of
from preceptor_client.train.report.figures import Figure, figure_of, is_measured, layout_of, level, line
from preceptor_client.train.report.plots import Curve, Plot


def heldout_figure(plot: Plot, rows: Sequence[MetricRow], *, reference: Sequence[MetricRow]) -> Figure | None:
    """As `figure_of`; of named tasks each has a line, and its own level of the reference in the same colour."""
    tasks = tasks_of(rows)
    if tasks == [""]:
        return figure_of(plot, rows, reference=reference)
    traces = []
    for curve in plot.curves:
        for colour, task in enumerate(tasks):
            own = _of_task(rows, task)
            if is_measured(own, curve.key):
                traces.append(line(own, curve, colour=colour, name=task or curve.name))
            if marks := _of_task(reference, task):
                name = f"{task}: {plot.reference_name}"
                traces.append(level(own, marks[0].get(curve.key), name=name, colour=colour))
    if not traces:
        return None
    return Figure(title=plot.title, caption=plot.caption, traces=traces, layout={**layout_of(plot), "showlegend": True})


def own_figures(rows: Sequence[MetricRow]) -> list[Figure]:
    """One figure for each metric that the user named."""
    names = dict.fromkeys(name for row in rows for name in own_metrics(row))
    plots = [
        Plot(
            title=f"Held-out {name}",
            caption="A metric of this run's own settings, on the held-out examples.",
            curves=(Curve(key=name, name=name),),
            kind="heldout",
        )
        for name in names
    ]
    return [figure for plot in plots if (figure := heldout_figure(plot, rows, reference=()))]


def tasks_of(rows: Sequence[MetricRow]) -> list[str]:
    """Their names, in the order of their first row; "" where tasks have no names."""
    return list(dict.fromkeys(map(task_of, rows))) or [""]


def _of_task(rows: Sequence[MetricRow], task: str) -> list[MetricRow]:
    return [row for row in rows if task_of(row) == task]
