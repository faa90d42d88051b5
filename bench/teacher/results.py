"""The bench's file: what was measured on what, saved after each cell, so that a run can go on where it was cut."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from bench.teacher.outcome import Outcome


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One way on one workload in one round. `top_k` is None of a way that returns no support."""

    round_index: int
    workload: str
    top_k: int | None
    way: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """What a cell holds."""

    outcome: Outcome
    peak_bytes: int
    """Of memory, of the teacher's processes while it scored."""

    @property
    def positions_per_second(self) -> float:
        return self.outcome.num_positions / self.outcome.seconds

    @property
    def bytes_per_position(self) -> float | None:
        reply_bytes = self.outcome.reply_bytes
        return None if reply_bytes is None else reply_bytes / self.outcome.num_positions


@dataclass(slots=True, kw_only=True)
class Results:
    """`about` says what all cells have in common: machine, versions, commit, model and settings."""

    about: Mapping[str, object]
    commands: dict[str, list[str]]
    """What started each way."""
    cells: dict[Cell, Measurement]

    def save(self, path: Path, **more: object) -> None:
        """Beside, then renamed: a cut-off run leaves the last whole file."""
        rows = [asdict(cell) | asdict(measurement) for cell, measurement in self.cells.items()]
        content = {"about": self.about, "commands": self.commands, **more, "cells": rows}
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = path.with_name(f".{path.name}.new")
        beside.write_text(json.dumps(content, indent=1) + "\n")
        beside.rename(path)

    @classmethod
    def load(cls, path: Path) -> Self:
        """What `save` wrote."""
        content = json.loads(path.read_text())
        cells = dict(_read_row(row) for row in content["cells"])
        return cls(about=content["about"], commands=content["commands"], cells=cells)

    @classmethod
    def resume(cls, path: Path, *, about: Mapping[str, object]) -> Self:
        """The cells of `path`. Raises ValueError where they were measured on something else than `about`."""
        earlier = cls.load(path)
        plain = json.loads(json.dumps(about))
        differing = [key for key in sorted({*plain, *earlier.about}) if plain.get(key) != earlier.about.get(key)]
        if differing:
            told = "; ".join(f"{key}: {earlier.about.get(key)} there, {plain.get(key)} here" for key in differing)
            raise ValueError(f"{path} cannot be resumed, it was measured otherwise ({told}): drop --resume")
        return earlier


def _read_row(row: dict[str, Any]) -> tuple[Cell, Measurement]:  # Any: whatever JSON holds
    outcome = Outcome(**row.pop("outcome"))
    peak_bytes = row.pop("peak_bytes")
    return Cell(**row), Measurement(outcome=outcome, peak_bytes=peak_bytes)
