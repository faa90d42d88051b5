"""Reads typed settings from TOML files, the environment and the command line, for both programs.

Precedence: command line > environment > TOML files, left to right > defaults. Unknown keys fail.
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any, TypeVar, cast

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_settings import (
    BaseSettings,
    CliApp,
    PydanticBaseSettingsSource,
    SettingsError,
    TomlConfigSettingsSource,
)

SettingsT = TypeVar("SettingsT", bound=BaseSettings)


class Section(BaseModel):
    """A table of a settings file: frozen, without unknown keys, its docstrings the help of the command line."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class InvalidSettingsError(ValueError):
    """The settings cannot be used; the message names the key and what to change."""


def load_settings(settings_type: type[SettingsT], arguments: list[str], *, program: str) -> SettingsT:
    """Reads `@ a.toml @ b.toml --section.key value`; a missing file, an unknown key or a wrong type raises
    InvalidSettingsError."""
    files, options = _split_files(arguments)

    # A base class chosen at run time is beyond mypy; the subclass only adds the TOML source.
    class WithFiles(settings_type):  # type: ignore[misc, valid-type]
        __doc__ = settings_type.__doc__

        @classmethod
        def settings_customise_sources(
            cls,
            settings_cls: type[BaseSettings],
            init_settings: PydanticBaseSettingsSource,
            env_settings: PydanticBaseSettingsSource,
            **_: PydanticBaseSettingsSource,
        ) -> tuple[PydanticBaseSettingsSource, ...]:
            toml = TomlConfigSettingsSource(settings_cls, toml_file=files, deep_merge=True)
            return init_settings, env_settings, toml

    WithFiles.__name__ = settings_type.__name__
    WithFiles.model_config["cli_prog_name"] = program
    try:
        settings = CliApp.run(WithFiles, cli_args=options)
    except ValidationError as error:
        raise InvalidSettingsError(_describe(error, program)) from error
    except (SettingsError, tomllib.TOMLDecodeError) as error:
        raise InvalidSettingsError(f"{', '.join(map(str, files)) or 'command line'}: {error}") from error
    # Out of the subclass: whoever prints or compares the settings meets the type that they asked for.
    return cast(SettingsT, settings_type.model_construct(**dict(settings)))


def dump_settings(settings: BaseSettings) -> dict[str, Any]:  # Any: the leaves are whatever TOML holds
    """The resolved settings as plain data, to print and to save with a run."""
    return settings.model_dump(mode="json")


def _split_files(arguments: list[str]) -> tuple[list[Path], list[str]]:
    files: list[Path] = []
    options = list(arguments)
    while options[:1] == ["@"]:
        if len(options) < 2:
            raise InvalidSettingsError("'@' must be followed by the path of a TOML file")
        path = Path(options[1])
        if not path.is_file():
            raise InvalidSettingsError(f"settings file {path} does not exist")
        files.append(path)
        options = options[2:]
    return files, options


def _describe(error: ValidationError, program: str) -> str:
    lines = [f"{program}: {error.error_count()} setting(s) cannot be used"]
    for detail in error.errors():
        key = ".".join(str(part) for part in detail["loc"]) or "settings"
        given = "" if detail["type"] == "missing" else f" (given: {detail['input']!r})"
        lines.append(f"  {key}: {detail['msg']}{given}")
    lines.append(f"{program} --help describes every setting")
    return "\n".join(lines)
