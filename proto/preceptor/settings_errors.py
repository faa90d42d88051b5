"""Says what is wrong with settings, in words that name the setting and what to change. Reads nothing itself."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from difflib import get_close_matches
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails
from pydantic_settings import SettingsError

Location = tuple[int | str, ...]

_UNRECOGNIZED = "unrecognized arguments: "
"""As argparse says it."""
_NOT_JSON = re.compile('error parsing value for field "(.*)" from source "(.*)"')
"""As pydantic-settings says it."""

_MAX_SHOWN = 100
"""Characters of a value that is repeated."""
_WORDS = {
    "int_parsing": "must be a whole number",
    "int_type": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_parsing": "must be a number",
    "float_type": "must be a number",
    "finite_number": "must be a finite number",
    "bool_parsing": "must be true or false",
    "bool_type": "must be true or false",
    "string_type": "must be a text",
    "path_not_directory": "is no folder that exists",
}


def words_of(mistake: ErrorDetails) -> str:
    """pydantic's message, without the name of the exception that one of our own checks raised."""
    return mistake["msg"].removeprefix("Value error, ")


def explain(error: ValidationError, settings_type: type[BaseModel]) -> list[str]:
    """One line for each mistake: the setting, what is wrong with it, and its value where that helps to find it."""
    return [line for mistake in error.errors() for line in _lines(mistake, settings_type)]


def mistaken_variables(
    settings_type: type[BaseModel], environment: Mapping[str, str], *, prefix: str, delimiter: str
) -> Iterator[str]:
    """Of variables that nobody reads, those that are a letter or two from one: another program's may begin alike."""
    names = [name.upper() for name in settings_type.model_fields]
    for variable in environment:
        head, found, rest = variable.upper().removeprefix(prefix).partition(delimiter)
        if not (found and variable.upper().startswith(prefix)) or head in names:
            continue
        if meant := get_close_matches(head, names, n=1, cutoff=0.8):
            yield f"{variable}: there is no such setting; did you mean {prefix}{meant[0]}{delimiter}{rest}?"


def explain_source(error: SettingsError, settings_type: type[BaseModel]) -> str:
    """What is wrong with a command line or a variable that could not even be read."""
    text = str(error).removeprefix("error parsing CLI: ").removeprefix("Parsing error encountered for ")
    if match := _NOT_JSON.fullmatch(text):
        where = "the environment" if match[2].startswith("Env") else "the command line"
        return f"{match[1]}: what {where} says is not JSON, which it must be for a whole table or list"
    if not text.startswith(_UNRECOGNIZED):
        return text
    given = text.removeprefix(_UNRECOGNIZED).split(" ")[0]
    if not given.startswith("-"):
        return f"{given!r} is no option: settings files stand first, each after an @: @ {given}"
    option = given.partition("=")[0]
    return f"there is no option {option}{_hint(option, list(_options(settings_type)))}"


def is_blank_path(annotation: object, value: object) -> bool:
    """Whether a path is left empty, which would be the current folder."""
    return value == "" and _takes(annotation, os.PathLike)


def is_misplaced_truth(annotation: object, value: object) -> bool:
    """Whether true or false is given for a number, which would be 1 or 0."""
    is_number = _takes(annotation, int) or _takes(annotation, float)
    return isinstance(value, bool) and is_number and not _takes(annotation, bool)


def _lines(mistake: ErrorDetails, settings_type: type[BaseModel], *, before: Location = ()) -> Iterator[str]:
    location = (*before, *mistake["loc"])
    key = ".".join(map(str, location))
    section = _model_at(settings_type, location)
    if mistake["type"] == "missing" and section is not None:
        yield from _missing_section(section, settings_type, location)
    elif mistake["type"] == "missing":
        yield f"{key}: is not set, and has no default"
    elif mistake["type"] == "extra_forbidden":
        around = _model_at(settings_type, location[:-1])
        known = list(around.model_fields) if around else []
        yield f"{key}: there is no such setting{_hint(str(location[-1]), known, before=location[:-1])}"
    elif mistake["type"] in ("model_type", "model_attributes_type", "dict_type") and section is not None:
        yield f"{key}: is a table of settings, [{key}]{_given(mistake['input'])}"
    else:
        words = _WORDS.get(mistake["type"]) or words_of(mistake)
        words = words.replace("Input should be", "must be").replace("String should have at least 1 character", _EMPTY)
        names_itself = not key or words.startswith(f"{key}.")  # a check across fields
        yield words if names_itself else f"{key}: {words}{_given(mistake['input'])}"


_EMPTY = "must not be empty"


def _missing_section(section: type[BaseModel], settings_type: type[BaseModel], location: Location) -> Iterator[str]:
    """What an empty table would lack."""
    try:
        section.model_validate({})
    except ValidationError as error:
        for mistake in error.errors():
            yield from _lines(mistake, settings_type, before=location)


def _given(value: object) -> str:
    """A table is no help: whoever reads this has just written it."""
    if isinstance(value, BaseModel | Mapping) or value == "":
        return ""
    text = repr(value)
    return f" (given: {text if len(text) <= _MAX_SHOWN else text[:_MAX_SHOWN] + '...'})"


def _hint(name: str, known: Iterable[str], *, before: Location = ()) -> str:
    meant = get_close_matches(name, list(known), n=1)
    return f"; did you mean {'.'.join(map(str, (*before, meant[0])))}?" if meant else ""


def _model_at(settings_type: type[BaseModel], location: Location) -> type[BaseModel] | None:
    """The table of settings at a place; None where there is a single setting, or nothing."""
    found = settings_type
    for part in location:
        field = found.model_fields.get(str(part))
        if field is None or not (isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)):
            return None
        found = field.annotation
    return found


def _options(settings_type: type[BaseModel], *, before: str = "--") -> Iterator[str]:
    for name in settings_type.model_fields:
        option = before + name.replace("_", "-")
        section = _model_at(settings_type, (name,))
        yield from [option] if section is None else _options(section, before=f"{option}.")


def _takes(annotation: Any, kind: type) -> bool:  # Any: whatever stands behind a field's colon
    if isinstance(annotation, type):
        return issubclass(annotation, kind)
    return any(_takes(part, kind) for part in get_args(annotation))
