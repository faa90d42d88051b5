"""JSON that a caller hands over: read from text and written to it, within bounds. Knows nothing of what it means.

Both sides use it, so that what one accepts the other accepts too.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import NoReturn, TypeAlias

Json: TypeAlias = "bool | int | float | str | Sequence[Json] | Mapping[str, Json] | None"
"""Any value of JSON."""
JsonObject: TypeAlias = "dict[str, Json]"
"""An object of JSON, as plain dicts and lists."""

MAX_JSON_CHARACTERS = 1 << 20
"""Of one text."""
MAX_JSON_DEPTH = 64
"""Objects and lists inside each other; an object of plain values has depth 1."""


def read_object(text: str) -> JsonObject:
    """The object that a text holds, keys in their order. Raises ValueError: not JSON, no object, too large."""
    if len(text) > MAX_JSON_CHARACTERS:
        raise ValueError(f"has {len(text):,} characters, more than {MAX_JSON_CHARACTERS:,}: send less")
    try:
        value = json.loads(text, parse_constant=_refuse_constant)
    except RecursionError as error:
        raise _too_deep() from error
    except ValueError as error:
        raise ValueError(f"not JSON: {error}") from error
    return plain_object(value)


def object_text(value: Mapping[str, Json]) -> str:
    """The text of an object, keys in their order. Raises ValueError as `plain_object`, and where it is too long."""
    text = json.dumps(plain_object(value))
    if len(text) > MAX_JSON_CHARACTERS:
        raise ValueError(f"has {len(text):,} characters as JSON, more than {MAX_JSON_CHARACTERS:,}: send less")
    return text


def plain_object(value: object) -> JsonObject:
    """The same object in dicts and lists of its own. Raises ValueError where it is no object, holds what JSON lacks
    (NaN, infinity, keys other than text, half a surrogate pair, other types), or is nested beyond MAX_JSON_DEPTH."""
    if not isinstance(value, Mapping):
        raise ValueError(f"holds a {type(value).__name__}, must be a JSON object")
    plain = _plain(value, depth=1)
    assert isinstance(plain, dict)
    return plain


def _plain(value: object, *, depth: int) -> Json:
    if isinstance(value, str):
        return _text(value)
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"holds {value}, a number that JSON does not have")
        return value
    if not isinstance(value, Mapping | list | tuple):
        raise ValueError(f"holds a {type(value).__name__}, which JSON does not have")
    if depth > MAX_JSON_DEPTH:
        raise _too_deep()
    if isinstance(value, Mapping):
        return {_key(key): _plain(item, depth=depth + 1) for key, item in value.items()}
    return [_plain(item, depth=depth + 1) for item in value]


def _key(key: object) -> str:
    if not isinstance(key, str):
        raise ValueError(f"has the key {key!r}, which is a {type(key).__name__}: JSON's keys are text")
    return _text(key)


def _text(value: str) -> str:
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ValueError("holds half of a surrogate pair, which is no text") from error
    return value


def _too_deep() -> ValueError:
    return ValueError(f"is nested deeper than {MAX_JSON_DEPTH} levels: flatten it")


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"it holds {name}")
