"""Reads what a run left on disk, whether it is done, going on or was stopped. Imports no torch."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from preceptor_client.train.errors import RunDirectoryError
from preceptor_client.train.learner.checkpoint_folders import CHECKPOINTS_FOLDER, latest_checkpoint
from preceptor_client.train.record.metrics import METRICS_FILE, MetricRow, read_rows
from preceptor_client.train.record.rollout_log import ROLLOUTS_FILE, RolloutRow, read_rollouts
from preceptor_client.train.record.settings_file import CONFIG_FILE
from preceptor_client.train.record.summary import RunSummary, summarise
from preceptor_client.train.teacher.agreement import Alignment, alignment_tables, read_agreed

REPORT_FILE = "report.html"

Table = dict[str, Any]  # Any: the leaves are whatever TOML holds
Settings = dict[str, Table]
_LEVELS = {"teachers": 2, "tasks": 3}
"""Tables that hold tables: how many names lead to a setting, below the section's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunData:
    """Everything that a report shows of one run."""

    summary: RunSummary
    settings: Settings
    rows: Sequence[MetricRow]
    """Of metrics.jsonl, in its order."""
    rollouts: Sequence[RolloutRow]
    alignment: Mapping[str, Sequence[tuple[str, str]]]
    """What was agreed with each teacher, for people, by its name in the settings; that of the only one may be ""."""
    agreed: Mapping[str, Alignment]
    """The same as it is in the file; empty where there is none."""

    @property
    def num_steps_planned(self) -> int:
        return int(self.settings["run"]["num_steps"])

    @property
    def has_model(self) -> bool:
        """Whether a checkpoint is there to be named."""
        return self.summary.model_folder.name.startswith("step-")

    @property
    def teachers(self) -> dict[str, Table]:
        """The settings of each teacher, by its name in the settings; "" stands for one that has none."""
        return _teachers(self.settings)

    @property
    def has_named_teachers(self) -> bool:
        return "" not in self.teachers

    def asked(self, teacher: str, *, task: str) -> Table:
        """The settings that a teacher was asked with in one task."""
        return {**self.teachers.get(teacher, {}), **self.settings.get("tasks", {}).get(task, {}).get("teacher", {})}

    def agreed_with(self, teacher: str) -> Alignment:
        """Empty where nothing is known."""
        return self.agreed.get(teacher) or self.agreed.get("", {})

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
        alignment=alignment_tables(directory),
        agreed=read_agreed(directory),
    )


def _teachers(settings: Settings) -> dict[str, Table]:
    common = settings.get("teacher", {})
    return {name: {**common, **own} for name, own in settings.get("teachers", {}).items()} or {"": common}


def flat_settings(settings: Settings) -> dict[str, object]:
    """`section.name` to value; `teachers.NAME.setting` and `tasks.NAME.section.setting` likewise."""
    flat: dict[str, object] = {}
    for section, fields in settings.items():
        flat |= _flat(section, fields, levels=_LEVELS.get(section, 1))
    return flat


def _flat(name: str, value: object, *, levels: int) -> dict[str, object]:
    if levels == 0 or not isinstance(value, dict):
        return {name: value}
    flat: dict[str, object] = {}
    for key, entry in value.items():
        flat |= _flat(f"{name}.{key}", entry, levels=levels - 1)
    return flat


def _settings(path: Path) -> Settings:
    try:
        settings = tomllib.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # of TOML, or of UTF-8
        raise RunDirectoryError(f"{path} cannot be read: {error}") from error
    try:
        int(settings["run"]["num_steps"]), settings["student"]["model"]
        [teacher["address"] for teacher in _teachers(settings).values()]
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise RunDirectoryError(f"{path} holds no settings of a run: {error!r}") from error
    return settings
