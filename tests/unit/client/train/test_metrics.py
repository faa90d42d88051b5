from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from preceptor_client.train.errors import RunDirectoryError
from preceptor_client.train.record.metrics import MetricRow, Metrics, read_rows
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # type: ignore[import-untyped]  # it has no types


def _row(step: int, *, loss: float | None = 1.0) -> MetricRow:
    return {"kind": "step", "step": step, "loss": loss}


def test_rows_are_in_the_file_when_write_returns(tmp_path: Path) -> None:
    with Metrics(tmp_path, step=0) as metrics:
        metrics.write(_row(1))
        assert read_rows(tmp_path / "metrics.jsonl") == [_row(1)]


def test_opening_at_a_step_drops_the_rows_after_it(tmp_path: Path) -> None:
    with Metrics(tmp_path, step=0) as metrics:
        for step in range(1, 6):
            metrics.write(_row(step))
    with Metrics(tmp_path, step=3) as metrics:
        assert metrics.has(kind="step", step=3)
        assert not metrics.has(kind="step", step=4)
        metrics.write(_row(4, loss=2.0))
    assert read_rows(tmp_path / "metrics.jsonl") == [_row(1), _row(2), _row(3), _row(4, loss=2.0)]


def test_torn_last_line_is_dropped_and_a_torn_other_line_reported(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(json.dumps(_row(1)) + '\n{"kind": "st')
    assert read_rows(path) == [_row(1)]
    path.write_text('{"kind": "st\n' + json.dumps(_row(1)) + "\n")
    with pytest.raises(RunDirectoryError, match=r"metrics\.jsonl:1"):
        read_rows(path)


def test_nan_does_not_reach_the_file(tmp_path: Path) -> None:
    with Metrics(tmp_path, step=0) as metrics, pytest.raises(ValueError, match="JSON compliant"):
        metrics.write(_row(1, loss=math.nan))


def test_tensorboard_holds_the_same_numbers(tmp_path: Path) -> None:
    with Metrics(tmp_path, step=0) as metrics:
        metrics.write(_row(1, loss=0.5))
        metrics.write({"kind": "heldout", "step": 1, "accuracy": 0.25})
        metrics.write(_row(2, loss=None))
    board = EventAccumulator(str(tmp_path / "tensorboard"))
    board.Reload()
    values = {tag: [(event.step, event.value) for event in board.Scalars(tag)] for tag in ("loss", "heldout/accuracy")}
    assert values == {"loss": [(1, 0.5)], "heldout/accuracy": [(1, 0.25)]}
