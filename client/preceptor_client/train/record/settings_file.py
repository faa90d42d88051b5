"""Writes and reads the settings of a run as a TOML file, config.toml. Imports no torch."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

CONFIG_FILE = "config.toml"

Settings = Mapping[str, Any]  # Any: the leaves are whatever TOML holds


def to_toml(settings: Settings) -> str:
    """Settings as TOML: a table for each section, lists of tables before them; what is None is left out."""
    lists = [f"{name} = {_toml_value(value)}" for name, value in settings.items() if isinstance(value, list) and value]
    lines = [*lists, ""] if lists else []
    for section, fields in settings.items():
        if isinstance(fields, Mapping) and fields:
            lines += [f"[{section}]", *_entries(fields), ""]
    return "\n".join(lines)


def _entries(table: Mapping[str, object]) -> list[str]:
    return [f"{_toml_key(name)} = {_toml_value(value)}" for name, value in table.items() if value is not None]


def _toml_value(value: object) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(_entries(value)) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_toml_value(entry) for entry in value) + "]"
    return _toml_text(value)


def _toml_key(name: str) -> str:
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else _toml_text(name)


def _toml_text(value: object) -> str:
    # A JSON text, number or boolean is TOML too, but for two things that TOML does not have: escapes of half a
    # character, and a bare DEL.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def flat_settings(settings: Mapping[str, object], prefix: str = "") -> dict[str, object]:
    """Every setting by its full name; a table without entries is none."""
    flat: dict[str, object] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping):
            flat |= flat_settings(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat
