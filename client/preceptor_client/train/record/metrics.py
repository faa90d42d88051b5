"""Writes the metrics of a run: metrics.jsonl, one object per line, and TensorBoard. Knows nothing of training."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from preceptor_client.train.data.step_lines import StepLines, read_lines

MetricValue = float | int | str | bool | None | list[dict[str, str | bool]]
MetricRow = dict[str, MetricValue]

METRICS_FILE = "metrics.jsonl"
HELDOUT_NAMES = frozenset(
    {
        "kind",
        "step",
        "task",
        "num_examples",
        "accuracy",
        "num_correct",
        "mean_answer_length",
        "answers",
        "mean_reward",
        "loss",
        "num_positions",
        "scored_share",
        "num_refused_groups",
        "failed_groups",
        "num_failed_episodes",
        "seconds",
    }
)
"""What a row of held-out measurements holds beside the numbers of `evaluation.metrics`."""
_WHAT = "a row of metrics"


class Metrics:
    """Writes rows as they come. Opened at a step, it drops every row after it, so that a resumed run has no doubles."""

    def __init__(self, directory: Path, *, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter  # here: a report reads rows without torch

        self._lines = StepLines(directory / METRICS_FILE, step=step, what=_WHAT)
        self.rows: list[MetricRow] = [*self._lines.kept]
        self._board = SummaryWriter(str(directory / "tensorboard"), purge_step=step + 1)

    def write(self, row: MetricRow) -> None:
        """Appends a row, which holds its `kind` and `step`. It is in the file when this returns."""
        self.rows.append(row)
        self._lines.write([row])
        for name, value in _scalars(row).items():
            self._board.add_scalar(name, value, _step_of(row))
        self._board.flush()

    def has(self, *, kind: str, step: int, task: str = "") -> bool:
        """Whether there is such a row; `task` is the name of a task in a run that has several."""
        wanted = (kind, step, task)
        return any((row["kind"], row["step"], task_of(row)) == wanted for row in self.rows)

    def close(self) -> None:
        self._lines.close()
        self._board.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def read_rows(path: Path) -> list[MetricRow]:
    """Every whole row of a metrics.jsonl; none where there is no file."""
    return [*read_lines(path, what=_WHAT)]


def task_of(row: Mapping[str, MetricValue]) -> str:
    """The name of the task that was measured; empty where the run has one, without a name."""
    return str(row.get("task", ""))


def own_metrics(row: Mapping[str, MetricValue]) -> dict[str, MetricValue]:
    """Of a row of held-out measurements the numbers of `evaluation.metrics`, by their names."""
    return {name: value for name, value in row.items() if name not in HELDOUT_NAMES}


def _step_of(row: Mapping[str, MetricValue]) -> int:
    step = row["step"]
    assert isinstance(step, int)
    return step


def _scalars(row: Mapping[str, MetricValue]) -> dict[str, float]:
    prefix = {"step": "", "breakdown": f"{row.get('by')}/{row.get('group')}/"}.get(str(row["kind"]), f"{row['kind']}/")
    if task := task_of(row):
        prefix += f"{task}/"
    return {
        f"{prefix}{name}": float(value)
        for name, value in row.items()
        if name not in ("kind", "step") and isinstance(value, int | float)
    }
