"""Draws what bench.head measured: python -m bench.plots RESULTS.json (from python -m bench.head --json RESULTS.json)

Needs matplotlib, which no other part of the project does.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

FIGURES = Path(__file__).parent.parent / "docs" / "figures"
INSTALL = "pip install matplotlib==3.11.2"
FILE = "head_scaling.svg"

_AXES = {
    "num_positions": "positions N",
    "support_size": "support size K",
    "vocabulary_size": "vocabulary V",
}
_MEASURES = {
    "seconds": ("seconds", 1.0),
    "resident_bytes": ("peak memory, MB", 1 / (1 << 20)),
}
_STYLES = (("#0072B2", "o"), ("#D55E00", "s"))
"""Blue and vermillion of Okabe and Ito, which colour-blind people tell apart; the marks differ too."""
_LABELS = ("sparse", "dense")
_SETTINGS = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e6e6e6",
    "svg.fonttype": "none",
    "svg.hashsalt": "preceptor",
}
"""Text stays text, and the same figures give the same file."""


def is_available() -> bool:
    return find_spec("matplotlib") is not None


def draw_scaling(results: Mapping[str, Any]) -> Path:  # Any: JSON
    """Time and peak memory against N, K and V, both axes logarithmic. Returns the file."""
    # Not installed where mypy runs; the backend draws without a display.
    matplotlib = import_module("matplotlib")
    matplotlib.use("svg")
    with matplotlib.rc_context(_SETTINGS):
        figure, axes = import_module("matplotlib.pyplot").subplots(
            len(_MEASURES), len(_AXES), figsize=(9.6, 5.4), sharey="row", layout="constrained"
        )
        for row, measure in zip(axes, _MEASURES, strict=True):
            for axis, sweep in zip(row, _AXES, strict=True):
                points = [point for point in results["scaling"] if point["sweep"] == sweep]
                _draw(axis, points, sweep=sweep, measure=measure)
            row[0].set_ylabel(_MEASURES[measure][0])
        for axis, sweep in zip(axes[-1], _AXES, strict=True):
            axis.set_xlabel(_AXES[sweep])
        figure.suptitle(_title(results), fontsize=10)
        FIGURES.mkdir(parents=True, exist_ok=True)
        figure.savefig(FIGURES / FILE, metadata={"Date": None})
    return FIGURES / FILE


def _draw(axis: Any, points: Sequence[Mapping[str, Any]], *, sweep: str, measure: str) -> None:  # Any: matplotlib, JSON
    factor = _MEASURES[measure][1]
    ways = list(dict.fromkeys(point["way"] for point in points))
    for way, label, (colour, mark) in zip(ways, _LABELS, _STYLES, strict=True):
        measured = [point for point in points if point["way"] == way and point[measure] is not None]
        sizes, values = [point["size"] for point in measured], [point[measure] * factor for point in measured]
        axis.plot(sizes, values, color=colour, marker=mark, markersize=4, linewidth=1.6)
        axis.annotate(
            label, (sizes[-1], values[-1]), xytext=(0, 6), textcoords="offset points", color=colour, ha="right",
            fontweight="bold",
        )  # fmt: skip
    axis.set_xscale("log", base=2)
    axis.set_yscale("log")
    sizes = sorted({point["size"] for point in points})
    shown = sizes[:: 2 if len(sizes) > 5 else 1]
    axis.set_xticks(shown, [_short(size) for size in shown])
    axis.minorticks_off()
    axis.margins(y=0.15)
    axis.set_title(f"by {_AXES[sweep]}", fontsize=9, loc="left")


def _short(size: int) -> str:
    return f"{size // 1024}k" if size >= 1024 else str(size)


def _title(results: Mapping[str, Any]) -> str:  # Any: JSON
    case, machine = results["case"], results["machine"]
    return (
        f"Forward + backward of the head: N = {case['num_positions']:,}, K = {case['support_size']}, "
        f"V = {case['vocabulary_size']:,}, d = {case['hidden_size']} but for what is on the axis\n"
        f"fp32, {machine['processor']}, {machine['cores']} cores, torch {machine['torch']}, "
        f"commit {machine['commit']}\n"
        "memory without the matrix's gradient; the dense way only up to 6 GiB"
    )


def main() -> int:
    """Draws again what a file holds."""
    if not is_available():
        raise SystemExit(f"matplotlib is not installed: {INSTALL}")
    if len(sys.argv) != 2:
        raise SystemExit("usage: python -m bench.plots RESULTS.json")
    print(draw_scaling(json.loads(Path(sys.argv[1]).read_text())))
    return 0


if __name__ == "__main__":
    sys.exit(main())
