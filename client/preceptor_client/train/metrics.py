"""The numbers of a run, on disk: metrics.jsonl, one object per line, and TensorBoard. Knows nothing of training."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from preceptor_client.train.errors import RunDirectoryError

MetricValue = float | int | str | bool | None | list[dict[str, str | bool]]
MetricRow = dict[str, MetricValue]

METRICS_FILE = "metrics.jsonl"


class Metrics:
    """Writes rows as they come. Opened at a step, it drops every row after it, so that a resumed run has no doubles."""

    def __init__(self, directory: Path, *, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter  # here: a report reads rows without torch

        self._path = directory / METRICS_FILE
        self.rows = [row for row in read_rows(self._path) if _step_of(row) <= step]
        temporary = self._path.with_suffix(".tmp")
        temporary.write_text("".join(_line(row) for row in self.rows), encoding="utf-8")
        os.replace(temporary, self._path)
        self._file = self._path.open("a", encoding="utf-8")
        self._board = SummaryWriter(str(directory / "tensorboard"), purge_step=step + 1)

    def write(self, row: MetricRow) -> None:
        """Appends a row, which holds its `kind` and `step`. It is in the file when this returns."""
        self.rows.append(row)
        self._file.write(_line(row))
        self._file.flush()
        for name, value in _scalars(row).items():
            self._board.add_scalar(name, value, _step_of(row))
        self._board.flush()

    def has(self, *, kind: str, step: int) -> bool:
        return any(row["kind"] == kind and row["step"] == step for row in self.rows)

    def close(self) -> None:
        self._file.close()
        self._board.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def read_rows(path: Path) -> list[MetricRow]:
    """Every whole row of a metrics.jsonl; none where there is no file. A torn last line is what a kill leaves."""
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    rows: list[MetricRow] = []
    for number, line in enumerate(lines, start=1):
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError as error:
            if number == len(lines) and not line.endswith("\n"):
                break
            raise RunDirectoryError(f"{path}:{number}: not a row of metrics: {error}") from error
    return rows


def _line(row: Mapping[str, MetricValue]) -> str:
    # NaN and infinity are not JSON: a row with one is a defect here, and must not reach a reader.
    return json.dumps(row, allow_nan=False) + "\n"


def _step_of(row: Mapping[str, MetricValue]) -> int:
    step = row["step"]
    assert isinstance(step, int)
    return step


def _scalars(row: Mapping[str, MetricValue]) -> dict[str, float]:
    prefix = {"step": "", "breakdown": f"{row.get('by')}/{row.get('group')}/"}.get(str(row["kind"]), f"{row['kind']}/")
    return {
        f"{prefix}{name}": float(value)
        for name, value in row.items()
        if name not in ("kind", "step") and isinstance(value, int | float)
    }
