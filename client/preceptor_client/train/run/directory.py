"""Claims the folder of a run, and compares its saved settings with the present ones. Reads no checkpoints.

config.toml     the resolved settings          checkpoints/    see checkpoint.py
metrics.jsonl   one row per step               tensorboard/    the same numbers
train.log       what happened                  report.html     written at the end
alignment.json  what was agreed with the teacher about tokens
rollouts.jsonl  a few rollouts, token by token  bad_examples.jsonl  see bad_examples.py
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import re
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from preceptor.settings import dump_settings

from preceptor_client.train.errors import RunDirectoryError
from preceptor_client.train.record.metrics import METRICS_FILE
from preceptor_client.train.record.settings_file import CONFIG_FILE, Settings, flat_settings, to_toml
from preceptor_client.train.run.config import RunConfig

LOG_FILE = "train.log"
_LOCK_FILE = ".lock"

_FREE_TO_CHANGE = re.compile(
    r"data\.(extra_fields|max_bad_examples|on_bad_example)"
    r"|(teacher|teachers\.[^.]+)\.(address|page|patience_seconds|api_key_file|insecure_key|ca|cert|cert_key|objective)"
    r"|(teacher|teachers\.[^.]+)\.(hedge_seconds|cache|cache_mode|cache_bytes)"
    r"|rollout\.environment_timeout_seconds"
    r"|run\.(directory|num_steps|checkpoint_every_steps|keep_checkpoints|sample_rollouts|resume|max_non_finite_share)"
    r"|run\.max_failed_share"
)
"""Settings that do not change what the steps done so far have computed, nor what they were measured with."""


@contextmanager
def claimed_directory(config: RunConfig) -> Iterator[Path]:
    """The run's folder, for this process alone, holding these settings and a log. Raises RunDirectoryError where
    another process trains in it, another run has left its work there, or its disk is full."""
    directory = config.run.directory
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:  # a file in its place, or no leave to write there
        raise RunDirectoryError(f"run.directory: {directory} cannot be made a folder ({error.strerror})") from error
    with (directory / _LOCK_FILE).open("a") as lock:
        try:
            # The kernel gives it back however the process ends.
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise RunDirectoryError(f"another process is training in {directory}: wait for it, or end it") from error
        settings = dump_settings(config)
        _check_previous(directory, settings, resume=config.run.resume)
        with _a_full_disk_told(directory), _log_file(directory / LOG_FILE):
            _replace(directory / CONFIG_FILE, to_toml(settings))
            yield directory


@contextmanager
def _a_full_disk_told(directory: Path) -> Iterator[None]:
    """The system's own error names no file."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise RunDirectoryError(
            f"run.directory: {directory} has no room left ({error}): free some, and the same command goes on"
        ) from error


def _check_previous(directory: Path, settings: Settings, *, resume: bool) -> None:
    path = directory / CONFIG_FILE
    if not path.is_file():
        if (directory / "checkpoints").exists():
            raise RunDirectoryError(f"{directory} holds checkpoints and no {CONFIG_FILE}: choose another run.directory")
        return
    if not _has_begun(directory):
        return
    if not resume:
        raise RunDirectoryError(f"{directory} holds a run: choose another run.directory, or set run.resume=true")
    try:
        previous = tomllib.loads(path.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise RunDirectoryError(f"{path} cannot be read: {error}") from error
    before, now = flat_settings(previous), flat_settings(tomllib.loads(to_toml(settings)))
    changed = sorted(
        key
        for key in before.keys() | now.keys()
        if not _FREE_TO_CHANGE.fullmatch(key) and before.get(key) != now.get(key)
    )
    if changed:
        key = changed[0]
        raise RunDirectoryError(
            f"{directory} holds a run with other settings ({', '.join(changed)}; {key} was {before.get(key)!r}, is "
            f"{now.get(key)!r}): choose another run.directory, or give the settings of {path}"
        )


def _has_begun(directory: Path) -> bool:
    """Whether a run has left numbers or weights here. An attempt that ended before, at a setting or at the teacher,
    leaves nothing that other settings could falsify."""
    metrics = directory / METRICS_FILE
    return (directory / "checkpoints").exists() or (metrics.is_file() and metrics.stat().st_size > 0)


def _replace(path: Path, text: str) -> None:
    """Whole or not at all: a run that ended here would not be taken for the one that left its checkpoints."""
    unfinished = path.with_suffix(".tmp")
    unfinished.write_text(text, encoding="utf-8")
    os.replace(unfinished, path)


@contextmanager
def _log_file(path: Path) -> Iterator[None]:
    """Everything that the client library logs, appended to a file."""
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s %(message)s"))
    logger = logging.getLogger("preceptor_client")
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        handler.close()
