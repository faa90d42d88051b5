"""Checkpoints of a run: whole or not there. Owns their folders; knows nothing of what happens between two of them."""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from preceptor_client.train.learner.checkpoint_folders import CHECKPOINTS_FOLDER, STATE_FILE, complete_checkpoints
from preceptor_client.train.student.student import Student

_log = logging.getLogger(__name__)

_OPTIMIZER_FILE = "optimizer.pt"
_TEMPORARY_PREFIX = ".writing-"


def save_checkpoint(
    directory: Path,
    *,
    step: int,
    student: Student,
    optimizer: torch.optim.Optimizer,
    keep: int,
    also: Callable[[Path], None] | None = None,
) -> Path:
    """Writes `checkpoints/step-<n>/` and removes all but the newest `keep`. `also` writes what else belongs to it into
    the folder that it is given.

    Everything is on the disk under another name before the folder gets its own: a kill at any moment leaves the old
    checkpoint or the new one. The folder is a model that `from_pretrained` loads.
    """
    folder = directory / CHECKPOINTS_FOLDER / f"step-{step:06d}"
    if folder.is_dir():
        return folder  # a run that was resumed here and has not moved since
    # What an interrupted run left half written; the run's directory is this process's alone.
    for unfinished in folder.parent.glob(f"{_TEMPORARY_PREFIX}*"):
        shutil.rmtree(unfinished)
    temporary = folder.with_name(f"{_TEMPORARY_PREFIX}{folder.name}")
    temporary.mkdir(parents=True)
    try:
        student.save(temporary)
        torch.save(optimizer.state_dict(), temporary / _OPTIMIZER_FILE)
        if also:
            also(temporary)
        (temporary / STATE_FILE).write_text(json.dumps({"format": 1, "step": step}) + "\n", encoding="utf-8")
        _sync([*temporary.rglob("*"), temporary])
    except OSError:
        shutil.rmtree(temporary, ignore_errors=True)  # a full disk has room again for the rest of the run
        raise
    os.rename(temporary, folder)
    _sync([folder.parent])
    _log.info("checkpoint saved: step=%d folder=%s", step, folder)
    _prune(folder.parent, keep=keep)
    return folder


def load_optimizer(folder: Path, *, optimizer: torch.optim.Optimizer) -> None:
    """Gives the optimizer the state that it had."""
    state = torch.load(folder / _OPTIMIZER_FILE, map_location="cpu", weights_only=True)
    optimizer.load_state_dict(state)


def _prune(checkpoints: Path, *, keep: int) -> None:
    for folder in complete_checkpoints(checkpoints)[:-keep]:
        # Renamed first: a folder that is half removed must not look like a checkpoint.
        doomed = folder.with_name(f"{_TEMPORARY_PREFIX}{folder.name}")
        os.rename(folder, doomed)
        shutil.rmtree(doomed)


def _sync(paths: Sequence[Path]) -> None:
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
