"""What a plot over steps is, before any run is read: measures, a caption, a scale."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Scale = Literal["free", "zero", "share"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """One measure."""

    key: str
    """In the rows of metrics.jsonl."""
    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Band:
    """The area between two measures, under the curves."""

    low: str
    high: str
    name: str
    colour: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Plot:
    """Measures on common axes; those that a run lacks are left out."""

    title: str
    caption: str
    curves: tuple[Curve, ...]
    bands: tuple[Band, ...] = ()
    kind: Literal["step", "heldout"] = "step"
    """Of the rows."""
    scale: Scale = "free"
    is_stacked: bool = False
    reference: str = ""
    """Kind of a row whose value is drawn as a level."""
    reference_name: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Topic:
    """Plots that answer one question."""

    title: str
    intro: str
    plots: tuple[Plot, ...]
