"""The folder of a run: who may use it, and the settings that it was made with. Does not look into checkpoints.

config.toml     the resolved settings          checkpoints/    see checkpoint.py
metrics.jsonl   one row per step               tensorboard/    the same numbers
train.log       what happened                  report.html     written at the end
alignment.json  what was agreed with the teacher about tokens
rollouts.jsonl  a few rollouts, token by token  bad_examples.jsonl  see bad_examples.py
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from preceptor.settings import dump_settings

from preceptor_client.train.errors import RunDirectoryError
from preceptor_client.train.record.metrics import METRICS_FILE
from preceptor_client.train.run.config import RunConfig

CONFIG_FILE = "config.toml"
LOG_FILE = "train.log"
_LOCK_FILE = ".lock"

_FREE_TO_CHANGE = {
    "data.extra_fields",
    "data.max_bad_examples",
    "data.on_bad_example",
    "teacher.address",
    "teacher.page",
    "teacher.patience_seconds",
    "run.directory",
    "run.num_steps",
    "run.checkpoint_every_steps",
    "run.keep_checkpoints",
    "run.sample_rollouts",
    "run.resume",
    "run.max_non_finite_share",
}
"""Settings that do not change what the steps done so far have computed, nor what they were measured with."""

Settings = Mapping[str, Any]  # Any: the leaves are whatever TOML holds


@contextmanager
def claimed_directory(config: RunConfig) -> Iterator[Path]:
    """The run's folder, for this process alone, holding these settings and a log. Raises RunDirectoryError where
    another process trains in it, or another run has left its work there."""
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
        _replace(directory / CONFIG_FILE, to_toml(settings))
        with _log_file(directory / LOG_FILE):
            yield directory


def to_toml(settings: Settings) -> str:
    """Settings as TOML: tables, and lists of tables, of fields whose values are whatever JSON holds. What is None is
    left out, which TOML has no word for."""
    lines: list[str] = []
    for section, fields in settings.items():
        is_list = not isinstance(fields, Mapping)
        for table in fields if is_list else [fields]:
            lines.append(f"[[{section}]]" if is_list else f"[{section}]")
            lines += [f"{name} = {_toml_value(value)}" for name, value in table.items() if value is not None]
            lines.append("")
    return "\n".join(lines)


def _toml_value(value: object) -> str:
    if isinstance(value, Mapping):
        entries = [(key, entry) for key, entry in value.items() if entry is not None]
        return "{" + ", ".join(f"{_toml_value(str(key))} = {_toml_value(entry)}" for key, entry in entries) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_toml_value(entry) for entry in value if entry is not None) + "]"
    # A JSON text, number or boolean is TOML too, but for two things that TOML does not have: escapes of
    # half a character, and a bare DEL.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


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
    before, now = _flat(previous), _flat(tomllib.loads(to_toml(settings)))
    changed = sorted(
        key for key in before.keys() | now.keys() if key not in _FREE_TO_CHANGE and before.get(key) != now.get(key)
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


def _flat(settings: Settings) -> dict[str, object]:
    """Each field by its key; a list of tables as one."""
    tables = {section: fields for section, fields in settings.items() if isinstance(fields, Mapping)}
    lists = {section: tables for section, tables in settings.items() if not isinstance(tables, Mapping)}
    return {f"{section}.{name}": value for section, fields in tables.items() for name, value in fields.items()} | lists


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
