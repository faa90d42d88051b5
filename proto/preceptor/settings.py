"""Reads typed settings from TOML files, the environment and the command line, for both programs.

Precedence: command line > environment > TOML files, left to right > defaults. Unknown keys fail.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar, cast

from pydantic import BaseModel, ConfigDict, ValidationError, ValidationInfo, field_validator
from pydantic_settings import (
    BaseSettings,
    CliApp,
    PydanticBaseSettingsSource,
    SettingsError,
    TomlConfigSettingsSource,
)

from preceptor.settings_errors import (
    explain,
    explain_source,
    is_blank_path,
    is_misplaced_truth,
    mistaken_variables,
)

SettingsT = TypeVar("SettingsT", bound=BaseSettings)


class Section(BaseModel):
    """A table of a settings file: frozen, without unknown keys, its docstrings the help of the command line."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)

    @field_validator("*", mode="before")
    @classmethod
    def _is_taken_for_nothing_else(cls, value: object, info: ValidationInfo) -> object:
        assert info.field_name
        annotation = cls.model_fields[info.field_name].annotation
        if is_misplaced_truth(annotation, value):
            raise ValueError("must be a number, not true or false")
        if is_blank_path(annotation, value):
            raise ValueError("must not be empty: write . for the current folder")
        return value


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
            toml = _TomlFiles(settings_cls, toml_file=files, deep_merge=True)
            return init_settings, env_settings, toml

    WithFiles.__name__ = settings_type.__name__
    WithFiles.model_config["cli_prog_name"] = program
    WithFiles.model_config["cli_exit_on_error"] = False
    try:
        settings = CliApp.run(WithFiles, cli_args=options)
    except ValidationError as error:
        raise _not_usable(explain(error, settings_type), program=program) from error
    except SettingsError as error:
        raise _not_usable([explain_source(error, settings_type)], program=program) from error
    if mistaken := list(_mistaken_variables(settings_type)):
        raise _not_usable(mistaken, program=program)
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


class _TomlFiles(TomlConfigSettingsSource):
    """Names the file that cannot be read, of several."""

    def _read_file(self, file_path: Any) -> dict[str, Any]:  # Any: a path or a resource; and whatever TOML holds
        try:
            # A byte order mark, which some editors write, is no part of the text.
            return tomllib.loads(file_path.read_text(encoding="utf-8-sig"))
        except UnicodeDecodeError as error:
            raise InvalidSettingsError(f"{file_path}: is not UTF-8 ({error}): save it as UTF-8") from error
        except tomllib.TOMLDecodeError as error:
            raise InvalidSettingsError(f"{file_path}: is not TOML: {error}") from error


def _mistaken_variables(settings_type: type[BaseSettings]) -> Iterator[str]:
    config = settings_type.model_config
    prefix, delimiter = config.get("env_prefix"), config.get("env_nested_delimiter")
    if prefix and delimiter:
        yield from mistaken_variables(settings_type, os.environ, prefix=prefix, delimiter=delimiter)


def _not_usable(mistakes: list[str], *, program: str) -> InvalidSettingsError:
    lines = [f"{program}: {len(mistakes)} setting(s) cannot be used", *(f"  {mistake}" for mistake in mistakes)]
    return InvalidSettingsError("\n".join([*lines, f"{program} --help describes every setting"]))
