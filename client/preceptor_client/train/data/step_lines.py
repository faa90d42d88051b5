"""Files of a run that hold one JSON object per line, each with its step: appended while it goes on, cut on resume."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from preceptor_client.train.errors import RunDirectoryError

Row = dict[str, Any]  # Any: the leaves are whatever JSON holds


class StepLines:
    """Appends rows. Opened at a step, it drops every row after it, so that a resumed run has no doubles."""

    def __init__(self, path: Path, *, step: int, what: str) -> None:
        """`what` a row is, for the message about one that is none."""
        self.kept = [row for row in read_lines(path, what=what) if row["step"] <= step]
        temporary = path.with_suffix(".tmp")
        temporary.write_text("".join(map(_line, self.kept)), encoding="utf-8")
        os.replace(temporary, path)
        self._file = path.open("a", encoding="utf-8")

    def write(self, rows: Iterable[Mapping[str, object]]) -> None:
        """The rows are in the file when this returns."""
        self._file.writelines([_line(row) for row in rows])
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def read_lines(path: Path, *, what: str) -> list[Row]:
    """Every whole row; none where there is no file. A torn last line is what a kill leaves."""
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    rows: list[Row] = []
    for number, line in enumerate(lines, start=1):
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError as error:
            if number == len(lines) and not line.endswith("\n"):
                break
            raise RunDirectoryError(f"{path}:{number}: not {what}: {error}") from error
    return rows


def _line(row: Mapping[str, object]) -> str:
    # NaN and infinity are not JSON: a row with one is a defect of its writer, and must not reach a reader.
    return json.dumps(row, allow_nan=False) + "\n"
