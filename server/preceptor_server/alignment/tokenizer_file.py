"""Opens a tokenizer.json that anybody may have written. Knows its outer shape, not what its tokens mean.

Whatever is wrong with one, the answer is InvalidTokenizerError.
"""

from __future__ import annotations

import json
from typing import Any

from tokenizers import Tokenizer

from preceptor_server.errors import InvalidTokenizerError

Json = dict[str, Any]  # Any: what stands in a tokenizer.json is checked where it is used
"""An object of a tokenizer.json."""


def parse_tokenizer(tokenizer_json: str) -> Json:
    """The parts of a tokenizer.json."""
    try:
        parts = json.loads(tokenizer_json)
    except RecursionError as error:
        raise InvalidTokenizerError("is nested too deeply for a tokenizer.json") from error
    except ValueError as error:
        raise InvalidTokenizerError(f"is not JSON: {error}") from error
    if not isinstance(parts, dict):
        raise InvalidTokenizerError(f"is not a tokenizer.json: it holds a {type(parts).__name__}, not an object")
    if parts.get("model") is None:
        raise InvalidTokenizerError("is not a tokenizer.json: it has no 'model'")
    return parts


def part_of(parts: Json, name: str) -> Json | None:
    """The object under `name`; None where there is none."""
    value = parts.get(name)
    if value is not None and not isinstance(value, dict):
        raise InvalidTokenizerError(f"is not a tokenizer.json: its '{name}' is a {type(value).__name__}, not an object")
    return value


def objects_of(parts: Json, name: str) -> list[Json]:
    """The objects in the list under `name`; none where there is no list."""
    values = parts.get(name)
    if values is None:
        return []
    if not isinstance(values, list) or not all(isinstance(value, dict) for value in values):
        raise InvalidTokenizerError(f"is not a tokenizer.json: its '{name}' is not a list of objects")
    return values


def text_of(parts: Json, name: str, *, default: str | None = None) -> str:
    """The string under `name`; `default` where there is none."""
    value = parts.get(name)
    if value is None:
        value = default
    if not isinstance(value, str):
        raise InvalidTokenizerError(f"is not a tokenizer.json: it has no text where '{name}' is expected")
    return value


def load_tokenizer_json(tokenizer_json: str) -> Tokenizer:
    """The library's tokenizer."""
    try:
        return Tokenizer.from_str(tokenizer_json)
    except Exception as error:  # the library raises nothing narrower
        raise InvalidTokenizerError(f"the tokenizers library refuses it: {_shortened(error)}") from error
    except BaseException as error:
        # A panic of the library is a BaseException whose class cannot be imported.
        if type(error).__name__ != "PanicException":
            raise
        raise InvalidTokenizerError(f"the tokenizers library fails on it: {_shortened(error)}") from error


def _shortened(error: BaseException) -> str:
    """Errors of the library may quote the file."""
    text = str(error)
    return text if len(text) <= 300 else f"{text[:300]}..."
