"""Says what is wrong with settings, in words that name the setting and what to change. Reads nothing itself."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel, Tag, ValidationError
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
    place = _place_of((*before, *mistake["loc"]), settings_type)
    key = ".".join(map(str, place.location))
    if mistake["type"] == "missing" and place.section is not None:
        yield from _missing_section(place.section, settings_type, (*before, *mistake["loc"]))
    elif mistake["type"] == "missing":
        yield f"{key}: is not set, and has no default"
    elif mistake["type"] == "extra_forbidden":
        yield _unknown(key, place)
    elif mistake["type"] in ("model_type", "model_attributes_type", "dict_type") and place.section is not None:
        yield f"{key}: is a table of settings, [{key}]{_given(mistake['input'])}"
    else:
        words = _WORDS.get(mistake["type"]) or words_of(mistake)
        words = words.replace("Input should be", "must be").replace("String should have at least 1 character", _EMPTY)
        names_itself = not key or words.startswith((f"{key}.", f"{key}="))  # a check across fields
        yield words if names_itself else f"{key}: {words}{_given(mistake['input'])}"


def _unknown(key: str, place: _Place) -> str:
    name = str(place.location[-1])
    if others := [tag for tag, section in place.choice.items() if name in section.model_fields]:
        return f"{key} is not a setting of {place.tag}, but of {' and '.join(others)}: leave it out"
    known = list(place.around.model_fields) if place.around else []
    return f"{key}: there is no such setting{_hint(name, known, before=place.location[:-1])}"


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


@dataclass(frozen=True, slots=True, kw_only=True)
class _Place:
    """A place among the settings."""

    location: Location
    """As the user writes it: pydantic's, without the tags of a choice."""
    section: type[BaseModel] | None
    """The table of settings that stands there, of a choice the first; None where there is a single setting, or
    nothing."""
    around: type[BaseModel] | None
    """The table in which it stands."""
    tag: str
    """Where that table is one of a choice: which."""
    choice: Mapping[str, type[BaseModel]]
    """The tables of that choice, by their tags."""


def _place_of(location: Location, settings_type: type[BaseModel]) -> _Place:
    here: Any = settings_type  # Any: whatever stands behind a field's colon
    around: type[BaseModel] | None = None
    written: list[int | str] = []
    tag, choice = "", dict[str, type[BaseModel]]()
    for part in location:
        sections = _sections(here)
        if len(sections) > 1 and part in sections:
            tag, choice, here = str(part), sections, sections[str(part)]
            continue
        if here not in choice.values():
            tag, choice = "", {}
        written.append(part)
        around = next(iter(sections.values()), None)
        if around is not None:
            field = around.model_fields.get(str(part))
            here = field.annotation if field else None
        else:
            here = get_args(here)[1] if get_origin(here) is dict else None
    section = next(iter(_sections(here).values()), None)
    return _Place(location=tuple(written), section=section, around=around, tag=tag, choice=choice)


def _sections(annotation: Any) -> dict[str, type[BaseModel]]:  # Any: whatever stands behind a field's colon
    """The tables of settings that may stand there, by their tags: one, "", where there is no choice."""
    if isinstance(annotation, type):
        return {"": annotation} if issubclass(annotation, BaseModel) else {}
    if get_origin(annotation) is Annotated:
        inner, *metadata = get_args(annotation)
        tags = [one.tag for one in metadata if isinstance(one, Tag)]
        return dict(zip(tags, _sections(inner).values(), strict=True)) if tags else _sections(inner)
    if get_origin(annotation) in (Union, UnionType):
        return {tag: section for part in get_args(annotation) for tag, section in _sections(part).items()}
    return {}


def _options(settings_type: type[BaseModel], *, before: str = "--") -> Iterator[str]:
    for name, field in settings_type.model_fields.items():
        option = before + name.replace("_", "-")
        sections = _sections(field.annotation)
        if not sections:
            yield option
        for section in sections.values():
            yield from _options(section, before=f"{option}.")


def _takes(annotation: Any, kind: type) -> bool:  # Any: whatever stands behind a field's colon
    if isinstance(annotation, type):
        return issubclass(annotation, kind)
    return any(_takes(part, kind) for part in get_args(annotation))
