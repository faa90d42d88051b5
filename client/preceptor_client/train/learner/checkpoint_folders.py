"""Finds the checkpoints of a run. Imports no torch, so that a report can name the model."""

from __future__ import annotations

import json
from pathlib import Path

from preceptor_client.train.errors import RunDirectoryError

CHECKPOINTS_FOLDER = "checkpoints"
STATE_FILE = "state.json"


def latest_checkpoint(directory: Path) -> Path | None:
    """The newest checkpoint of a run directory, None where it has none."""
    folders = complete_checkpoints(directory / CHECKPOINTS_FOLDER)
    return folders[-1] if folders else None


def checkpoint_step(folder: Path) -> int:
    """The last step whose update a checkpoint holds."""
    try:
        state = json.loads((folder / STATE_FILE).read_text(encoding="utf-8"))
        step = state["step"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunDirectoryError(f"{folder} is not a checkpoint: {error}") from error
    assert isinstance(step, int)
    return step


def complete_checkpoints(checkpoints: Path) -> list[Path]:
    """Oldest first. Names hold the step padded to six digits, and more digits sort after fewer."""
    folders = [folder for folder in checkpoints.glob("step-*") if (folder / STATE_FILE).is_file()]
    return sorted(folders, key=lambda folder: (len(folder.name), folder.name))
