"""Run directories without a run, and what a report of them embeds."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from preceptor_client.train.record.metrics import MetricRow
from preceptor_client.train.record.rollout_log import RolloutRow

Json = Any  # Any: whatever the page embeds

CONFIG = """[student]
model = "small"
[teacher]
address = "127.0.0.1:1"
name = "large"
[run]
directory = "runs/a"
num_steps = 4
"""


def step_row(step: int, **measures: float | None) -> MetricRow:
    """The least that every version of the trainer wrote."""
    return {"kind": "step", "step": step, "loss": 1.0 / step, "step_seconds": 2.0, **measures}


def write_run(
    directory: Path,
    rows: Sequence[MetricRow],
    *,
    rollouts: Sequence[RolloutRow] = (),
    config: str = CONFIG,
    alignment: Mapping[str, Json] | None = None,
) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    if alignment:
        (directory / "alignment.json").write_text(json.dumps(alignment))
    (directory / "config.toml").write_text(config)
    (directory / "metrics.jsonl").write_text(_lines(rows))
    if rollouts:
        (directory / "rollouts.jsonl").write_text(_lines(rollouts))
    return directory


def embedded(path: Path, name: str) -> Json:
    """What the script element of that id holds, cut out as a browser would: up to the first end tag."""
    match = re.search(rf'<script type="application/json" id="{name}">(.*?)</script', path.read_text(), re.DOTALL)
    return json.loads(match[1]) if match else None


def figures(path: Path) -> dict[str, Json]:
    """Of a page, by title."""
    return {figure["title"]: figure for figure in embedded(path, "figures")}


def curve(figure: Json, name: str) -> list[tuple[Json, Json]]:
    """The points of one trace."""
    trace = next(trace for trace in figure["traces"] if trace.get("name") == name)
    return list(zip(trace["x"], trace["y"], strict=True))


def _lines(rows: Sequence[Mapping[str, object]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)
