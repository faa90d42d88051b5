"""Reads what a run left on disk, whether it is done, going on or was stopped. Imports no torch."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from preceptor_client.train.errors import RunDirectoryError
from preceptor_client.train.learner.checkpoint_folders import CHECKPOINTS_FOLDER, latest_checkpoint
from preceptor_client.train.record.metrics import METRICS_FILE, MetricRow, read_rows
from preceptor_client.train.record.rollout_log import ROLLOUTS_FILE, RolloutRow, read_rollouts
from preceptor_client.train.record.settings_file import CONFIG_FILE
from preceptor_client.train.record.summary import RunSummary, summarise
from preceptor_client.train.teacher.agreement import Alignment, alignment_rows, read_alignment

REPORT_FILE = "report.html"

Settings = dict[str, dict[str, Any]]  # Any: the leaves are whatever TOML holds


@dataclass(frozen=True, slots=True, kw_only=True)
class RunData:
    """Everything that a report shows of one run."""

    summary: RunSummary
    settings: Settings
    rows: Sequence[MetricRow]
    """Of metrics.jsonl, in its order."""
    rollouts: Sequence[RolloutRow]
    alignment: Sequence[tuple[str, str]]
    """What was agreed with the teacher, for people."""
    agreed: Alignment
    """The same as it is in the file; empty where there is none."""

    @property
    def num_steps_planned(self) -> int:
        return int(self.settings["run"]["num_steps"])

    @property
    def has_model(self) -> bool:
        """Whether a checkpoint is there to be named."""
        return self.summary.model_folder.name.startswith("step-")

    def of_kind(self, kind: str) -> list[MetricRow]:
        return [row for row in self.rows if row["kind"] == kind]


def read_run(directory: Path) -> RunData:
    """Raises RunDirectoryError where the folder is no run, or a run without a step yet."""
    if not directory.is_dir():
        raise RunDirectoryError(f"{directory}: there is no such folder; name a run's folder, as in run.directory")
    if not (directory / CONFIG_FILE).is_file():
        raise RunDirectoryError(f"{directory} is no run: it holds no {CONFIG_FILE}; name a folder as in run.directory")
    run = data_of(summarise(directory, model_folder=latest_checkpoint(directory) or directory / CHECKPOINTS_FOLDER))
    if not run.summary.num_steps:
        raise RunDirectoryError(f"{directory} has no step in its {METRICS_FILE} yet: ask again when the first is done")
    return run


def data_of(summary: RunSummary) -> RunData:
    """What belongs to a summary."""
    directory = summary.directory
    return RunData(
        summary=summary,
        settings=_settings(directory / CONFIG_FILE),
        rows=read_rows(directory / METRICS_FILE),
        rollouts=read_rollouts(directory / ROLLOUTS_FILE),
        alignment=alignment_rows(directory),
        agreed=read_alignment(directory),
    )


def flat_settings(settings: Settings) -> dict[str, object]:
    """`section.name` to value."""
    return {f"{section}.{name}": value for section, fields in settings.items() for name, value in fields.items()}


def _settings(path: Path) -> Settings:
    try:
        settings = tomllib.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # of TOML, or of UTF-8
        raise RunDirectoryError(f"{path} cannot be read: {error}") from error
    try:
        int(settings["run"]["num_steps"]), settings["student"]["model"], settings["teacher"]["address"]
    except (KeyError, TypeError, ValueError) as error:
        raise RunDirectoryError(f"{path} holds no settings of a run: {error!r}") from error
    return settings
