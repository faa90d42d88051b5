"""Reads access files: tenants, and what is kept of their keys. Says of each mistake in which file and table it stands.

[tenants.team-a]
weight = 2.0

[[keys]]
id = "4f7w2kx9m3ab"
tenant = "team-a"
sha256 = "..."
expires = 2031-01-31
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Annotated, Any

from preceptor.settings import Section
from preceptor.settings_errors import explain, words_of
from pydantic import BeforeValidator, ValidationError, field_validator

from preceptor_server.errors import StartupError
from preceptor_server.tenants.config import TenantTable
from preceptor_server.tenants.keys import ID_PATTERN, KeyRecord
from preceptor_server.tenants.tenant import Tenant

TENANT_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_ID = re.compile(ID_PATTERN)
_SHA256 = re.compile(r"[0-9a-f]{64}")
_MAX_BYTES = 16 * 1024 * 1024


def as_moment(value: object) -> datetime:
    """A date is its first moment, UTC."""
    if isinstance(value, datetime):
        if value.tzinfo is None:
            raise ValueError("must say its offset: write a Z behind it for UTC")
        return value
    if isinstance(value, date):
        return datetime(value.year, value.month, value.day, tzinfo=UTC)
    raise ValueError("must be a date without quotes, such as 2031-01-31 or 2031-01-31T12:00:00Z")


Moment = Annotated[datetime, BeforeValidator(as_moment)]


class KeyTable(Section):
    """A table [[keys]] of an access file. Its mistakes are told without the values: one may be a key."""

    id: str
    tenant: str
    sha256: str
    created: Moment | None = None
    expires: Moment | None = None
    revoked: bool = False
    note: str = ""

    @field_validator("id")
    @classmethod
    def _check_id(cls, key_id: str) -> str:
        if not _ID.fullmatch(key_id):
            raise ValueError("must be the middle part of a key: 8 to 32 lower-case letters and digits")
        return key_id

    @field_validator("sha256")
    @classmethod
    def _check_hash(cls, sha256: str) -> str:
        if not _SHA256.fullmatch(sha256):
            raise ValueError("must be 64 digits 0-9a-f, the SHA-256 of a key's secret, as keys new writes it")
        return sha256


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """Who may ask."""

    tenants: Mapping[str, Tenant]
    """By name."""
    keys: Mapping[str, KeyRecord]
    """By id."""


@dataclass(slots=True, kw_only=True)
class _Reading:
    """What was read so far."""

    tenants: dict[str, Tenant] = field(default_factory=dict)
    keys: dict[str, KeyRecord] = field(default_factory=dict)
    file_of_tenant: dict[str, Path] = field(default_factory=dict)
    file_of_key: dict[str, Path] = field(default_factory=dict)
    mistakes: list[str] = field(default_factory=list)


def access_paths(path: Path) -> list[Path]:
    """The files that `path` names: itself, or the *.toml of a folder but hidden ones. Raises OSError."""
    if not path.is_dir():
        return [path]
    return sorted(one for one in path.iterdir() if one.suffix == ".toml" and not one.name.startswith("."))


def read_access(path: Path) -> Access:
    """Raises StartupError, which lists all mistakes."""
    try:
        texts = {one: _text_of(one) for one in access_paths(path)}
    except OSError as error:
        raise StartupError(
            f"access.file: {path} cannot be read ({error.strerror or error}): name a TOML file or a folder of them "
            f"that the server may read; `preceptor-server keys new --tenant NAME --file {path}` makes one"
        ) from error
    if not texts:
        raise StartupError(f"access.file: there is no *.toml in {path}: put the access file there, or name it")
    return parse_access(texts)


def parse_access(texts: Mapping[Path, str]) -> Access:
    """Of the files together: a key's tenant may stand in another. Raises StartupError, which lists all mistakes."""
    reading = _Reading()
    for path, text in texts.items():
        try:
            tables = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            reading.mistakes.append(f"{path}: is not TOML: {error}")
            continue
        reading.mistakes.extend(f"{path}: {mistake}" for mistake in _read(tables, path, reading))
    if not reading.mistakes:
        reading.mistakes.extend(_strays(reading))
    if reading.mistakes:
        lines = [f"access.file: {len(reading.mistakes)} mistake(s)", *(f"  {one}" for one in reading.mistakes)]
        raise StartupError("\n".join(lines))
    return Access(tenants=reading.tenants, keys=reading.keys)


def _text_of(path: Path) -> str:
    with path.open("rb") as file:
        content = file.read(_MAX_BYTES + 1)
    if len(content) > _MAX_BYTES:
        raise StartupError(f"access.file: {path} has more than {_MAX_BYTES} bytes: it is no access file")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise StartupError(f"access.file: {path} is not UTF-8 ({error}): save it as UTF-8") from error


def _read(tables: Mapping[str, Any], path: Path, reading: _Reading) -> Iterator[str]:  # Any: whatever TOML holds
    """Adds what stands in one file, and yields its mistakes."""
    for name in tables.keys() - {"tenants", "keys"}:
        yield f"{name}: there is no such table: an access file has [tenants.NAME] and [[keys]]"
    tenants, keys = tables.get("tenants", {}), tables.get("keys", [])
    if not isinstance(tenants, dict):
        yield "tenants: is a table of tables, [tenants.NAME]"
    else:
        yield from _read_tenants(tenants, path, reading)
    if not isinstance(keys, list):
        yield "keys: is a list of tables, [[keys]]"
    else:
        yield from _read_keys(keys, path, reading)


def _read_tenants(tenants: Mapping[str, Any], path: Path, reading: _Reading) -> Iterator[str]:
    for name, table in tenants.items():
        if not TENANT_NAME.fullmatch(name):
            yield f"[tenants.{name!r}]: a tenant's name has 1 to 64 letters, digits, dots, dashes or underscores"
        elif not isinstance(table, dict):
            yield f"tenants.{name}: is a table, [tenants.{name}]"
        elif name in reading.tenants:
            yield f"[tenants.{name}]: stands in {reading.file_of_tenant[name]} too: take one of them away"
        else:
            try:
                read = TenantTable.model_validate(table)
            except ValidationError as error:
                yield from (f"[tenants.{name}] {line}" for line in explain(error, TenantTable))
                read = TenantTable()  # so that its keys are not said to have no tenant
            reading.tenants[name] = read.to_tenant(name, rights=read.rights, teachers=read.teachers)
            reading.file_of_tenant[name] = path


def _read_keys(keys: Iterable[Any], path: Path, reading: _Reading) -> Iterator[str]:
    for number, table in enumerate(keys, 1):
        try:
            read = KeyTable.model_validate(table)
        except ValidationError as error:
            yield from (f"[[keys]] number {number}: {line}" for line in _explain_key(error))
            continue
        if read.id in reading.keys:
            yield f"[[keys]] number {number}: the id {read.id} stands in {reading.file_of_key[read.id]} already"
            continue
        reading.file_of_key[read.id] = path
        reading.keys[read.id] = KeyRecord(
            id=read.id,
            tenant=read.tenant,
            digest=bytes.fromhex(read.sha256),
            created=read.created,
            expires=read.expires,
            is_revoked=read.revoked,
        )


def _explain_key(error: ValidationError) -> Iterator[str]:
    for mistake in error.errors(include_input=False):
        where = ".".join(map(str, mistake["loc"]))
        if mistake["type"] == "missing":
            yield f"{where}: is not set, and has no default"
        elif mistake["type"] == "extra_forbidden":
            yield f"{where}: there is no such setting: a key has {', '.join(KeyTable.model_fields)}"
        else:
            yield f"{where}: {words_of(mistake)}" if where else words_of(mistake)


def _strays(reading: _Reading) -> Iterator[str]:
    for key in reading.keys.values():
        if key.tenant not in reading.tenants:
            yield (
                f"{reading.file_of_key[key.id]}: [[keys]] {key.id}: there is no tenant of this name in [tenants]: add "
                "[tenants.NAME], or mend the key's tenant"
            )
