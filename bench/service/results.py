"""What a scenario found: figures beside the old ones and beside what is wanted, saved as JSON."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One line of the table."""

    what: str
    value: float | str
    unit: str = ""
    old: str = ""
    """As issue 15 gives it, measured at commit 730636f on other hardware."""
    wanted: str = ""
    is_met: bool | None = None
    """None where nothing is wanted."""

    def shown(self) -> str:
        value = f"{self.value:,.4g}" if isinstance(self.value, float) else str(self.value)
        return f"{value} {self.unit}".strip()


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """Of one scenario."""

    scenario: str
    figures: tuple[Figure, ...] = ()
    skipped: str = ""
    """Why it, or a part of it, was not run."""
    details: Mapping[str, Any] = field(default_factory=dict)  # Any: whatever JSON holds
    seconds: float = 0.0
    tree: str = ""
    machine: Mapping[str, str | int | None] = field(default_factory=dict)
    command: str = ""

    @property
    def is_met(self) -> bool:
        return all(one.is_met is not False for one in self.figures)

    def save(self, folder: Path) -> None:
        """Written beside and renamed, so that a run that is cut short leaves whole files."""
        path = folder / f"{self.scenario}.json"
        unfinished = path.with_suffix(".part")
        unfinished.write_text(json.dumps(dataclasses.asdict(self), indent=1) + "\n")
        unfinished.replace(path)

    @classmethod
    def load(cls, path: Path) -> Result:
        fields = json.loads(path.read_text())
        return cls(**{**fields, "figures": tuple(Figure(**one) for one in fields["figures"])})


def table(results: Sequence[Result]) -> str:
    """As Markdown."""
    lines = ["| scenario | what | old (issue) | measured | wanted | met |", "|---|---|---|---|---|---|"]
    for result in results:
        for one in result.figures:
            met = {None: "", True: "yes", False: "**no**"}[one.is_met]
            lines.append(f"| {result.scenario} | {one.what} | {one.old} | {one.shown()} | {one.wanted} | {met} |")
        if result.skipped:
            lines.append(f"| {result.scenario} | skipped: {result.skipped} | | | | |")
    return "\n".join(lines)
