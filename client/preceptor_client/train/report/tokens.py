"""Plots of one run about single tokens: which had no score, and student against teacher at those that had."""

from __future__ import annotations

from collections.abc import Sequence

from preceptor_client.train.record.metrics import MetricRow
from preceptor_client.train.record.rollout_log import RolloutRow
from preceptor_client.train.report.figures import Figure, Plotly, colour_name, ends_of, number_of


def status_figure(steps: Sequence[MetricRow], *, statuses: Sequence[str]) -> Figure | None:
    """Shares of the response tokens without a score, by status; None where all of them have one. What nobody asked for
    is left out: what an environment wrote, and what is masked."""
    statuses = [status for status in statuses if status != "excluded"]
    counted = [row for row in steps if row.get("num_ok") is not None]
    totals = [sum(number_of(row.get(f"num_{status}")) for status in statuses) for row in counted]
    present = [status for status in statuses if status != "ok" and any(row.get(f"num_{status}") for row in counted)]
    if not present:
        return None
    traces: list[Plotly] = [
        {
            "type": "bar",
            "name": status.replace("_", " "),
            "marker": {"color": colour_name(index)},
            "x": [row["step"] for row in counted],
            "y": [
                number_of(row.get(f"num_{status}")) / total if total else None
                for row, total in zip(counted, totals, strict=True)
            ],
        }
        for index, status in enumerate(present)
    ]
    return Figure(
        title="Positions without a score",
        caption="Share of the student's tokens that the teacher did not score, by reason. Healthy: a few percent, of "
        "special tokens and of places where the two tokenizers cut the text differently.",
        traces=traces,
        layout={
            "xaxis": {"title": {"text": "step"}},
            "yaxis": {"rangemode": "tozero", "tickformat": ".1%", "hoverformat": ".2%"},
            "barmode": "stack",
            "bargap": 0.1,
            "showlegend": True,
        },
    )


def token_figure(rollouts: Sequence[RolloutRow]) -> Figure | None:
    """Student against teacher at the tokens of the rollouts kept, at the first and the last step that kept some."""
    ends = ends_of(sorted({row["step"] for row in rollouts}))
    traces = [_cloud(rollouts, step, colour=index) for index, step in enumerate(ends)]
    students = [value for trace in traces for value in trace["x"]]
    if not students:
        return None
    low = min(students)
    diagonal: Plotly = {
        "type": "scatter",
        "mode": "lines",
        "name": "equal",
        "x": [low, 0],
        "y": [low, 0],
        "line": {"color": "--soft", "width": 1, "dash": "dot"},
        "hoverinfo": "skip",
    }
    label = {"title": {"text": "student's log-probability"}}
    return Figure(
        title="Student against teacher, token by token",
        caption="Each point is a token of the rollouts below: below the line the teacher finds it less likely than the "
        "student did. Healthy: around the line, closer at the end. Points far down on the right are confident "
        "disagreements.",
        traces=[*traces, diagonal],
        layout={"xaxis": label, "yaxis": {"title": {"text": "teacher's"}}, "hovermode": "closest"},
    )


def _cloud(rollouts: Sequence[RolloutRow], step: int, *, colour: int) -> Plotly:
    pairs = [
        (token.get("student_logprob"), token["teacher_logprob"], token["text"])
        for row in rollouts
        if row["step"] == step
        for token in row["tokens"]
        if token.get("student_logprob") is not None and token.get("teacher_logprob") is not None
    ]
    return {
        "type": "scatter",
        "mode": "markers",
        "name": f"step {step}",
        "marker": {"color": colour_name(colour), "size": 5, "opacity": 0.55},
        "x": [student for student, _, _ in pairs],
        "y": [teacher for _, teacher, _ in pairs],
        "text": [repr(text) for _, _, text in pairs],
    }
