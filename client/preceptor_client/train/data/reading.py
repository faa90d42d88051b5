"""Reads the rows of a data file, or of a named dataset, one at a time. Knows nothing of what a row must hold.

Whatever is wrong with bytes, characters or JSON is an InvalidDataError. It names the row where one row alone is at
fault; the rest of the source can be read then.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

from preceptor_client.train.data.excerpts import excerpt, excerpt_around
from preceptor_client.train.errors import InvalidDataError

MAX_LINE_BYTES = 64 << 20
"""No prompt that a model reads needs a longer line; one that is longer is not held in memory."""
_BOM = b"\xef\xbb\xbf"
_COMPRESSED = {b"\x1f\x8b": "gzip", b"PAR1": "Parquet", b"PK\x03\x04": "ZIP", b"\x28\xb5\x2f\xfd": "Zstandard"}
"""First bytes of formats that are found under the name of another."""


@dataclass(frozen=True, slots=True)
class Number:
    """A number as the file writes it: 4.50 stays 4.50, and no length of digits is too long."""

    text: str

    def __repr__(self) -> str:
        return self.text


class Row(Protocol):
    """One row, not yet read."""

    @property
    def index(self) -> int:
        """Its place among the rows of its source."""

    @property
    def where(self) -> str:
        """The same for people."""

    def fields(self) -> Mapping[str, object]:
        """What it holds, by name: texts, Number, booleans, None, and lists and mappings of them. Raises
        InvalidDataError, which does not name the row."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JsonLine:
    """A line of a JSONL file."""

    index: int
    where: str
    data: bytes

    def fields(self) -> Mapping[str, object]:
        """As `Row.fields`."""
        if len(self.data) > MAX_LINE_BYTES:
            raise InvalidDataError(
                f"the line is longer than {MAX_LINE_BYTES >> 20} MiB: one example stands on each line"
            )
        value = _parsed(_decoded(self.data))
        if not isinstance(value, dict):
            raise InvalidDataError(f"must be an object with a 'prompt', not {excerpt(value)}")
        return value


def json_lines(path: Path) -> Iterator[JsonLine]:
    """The lines that are not blank. Raises InvalidDataError where there is no such file, or none of UTF-8."""
    try:
        if path.is_dir():
            raise InvalidDataError(f"{path}: is a folder, name a file in it")
        if not path.is_file():
            raise InvalidDataError(f"{path}: no such file")
        with path.open("rb") as file:
            _refuse_other_formats(file, path)
            index = 0
            for number, data in enumerate(_lines(file), start=1):
                if data.strip():
                    yield JsonLine(index=index, where=f"{path}:{number}", data=data)
                    index += 1
    except OSError as error:
        raise InvalidDataError(f"{path}: cannot be read: {error.strerror or error}") from error


def _refuse_other_formats(file: BinaryIO, path: Path) -> None:
    """Leaves the file at its first line."""
    head = file.read(4)
    for magic, name in _COMPRESSED.items():
        if head.startswith(magic):
            raise InvalidDataError(f"{path}: is a {name} file: give a file of plain text, one JSON object on each line")
    if len(head) == 4 and not any(head):
        raise InvalidDataError(f"{path}: begins with NUL bytes: it is damaged, or no text")
    encoding = json.detect_encoding(head).upper()
    if not encoding.startswith("UTF-8"):
        raise InvalidDataError(f"{path}: is {encoding}: save the file as UTF-8")
    file.seek(len(_BOM) if head.startswith(_BOM) else 0)


def _lines(file: BinaryIO) -> Iterator[bytes]:
    """Lines end in \\n, \\r\\n or \\r. Of one that is too long its beginning is yielded, with a byte too much."""
    while data := file.readline(MAX_LINE_BYTES + 1):
        if len(data) > MAX_LINE_BYTES:
            yield data
            while data and not data.endswith(b"\n"):
                data = file.readline(MAX_LINE_BYTES)
        else:
            yield from data.splitlines()


def _decoded(data: bytes) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InvalidDataError(
            f"not UTF-8 at byte {error.start + 1} of the line ({excerpt_around(data, error.start)}): save the file as "
            "UTF-8"
        ) from error


def _parsed(text: str) -> object:
    try:
        value: object = json.loads(
            text,
            parse_int=Number,
            parse_float=Number,
            parse_constant=_refuse_constant,
            object_pairs_hook=_without_doubles,
        )
    except json.JSONDecodeError as error:
        found = excerpt_around(text, error.pos)
        raise InvalidDataError(f"not JSON: {error.msg} at column {error.colno} ({found})") from error
    except RecursionError as error:
        raise InvalidDataError(f"lists or objects are nested too deep ({excerpt(text)})") from error
    return value


def _refuse_constant(name: str) -> object:
    raise InvalidDataError(f"holds {name}, which is not JSON: write a number, a text or null")


def _without_doubles(pairs: list[tuple[str, object]]) -> dict[str, object]:
    fields: dict[str, object] = {}
    for name, value in pairs:
        if name in fields:
            raise InvalidDataError(f"key {excerpt(name)} stands there twice: which one counts?")
        fields[name] = value
    return fields
