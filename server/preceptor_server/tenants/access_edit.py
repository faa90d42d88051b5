"""Changes an access file as a careful person would: text is added, nothing that stands there is rewritten, and a reader
never sees half a file. What comes out is read back before it takes the file's place."""

from __future__ import annotations

import fcntl
import json
import os
import re
import tempfile
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from preceptor_server.errors import StartupError
from preceptor_server.tenants.access_file import TENANT_NAME, Access, parse_access
from preceptor_server.tenants.keys import ApiKey
from preceptor_server.tenants.tenant import Right

_HEADER = """\
# Who may use a Preceptor server: tenants, and SHA-256 hashes of their keys' secrets. docs/access.md describes it.
# A server that runs reads this file again when it changes.
"""
_BARE = re.compile(r"[A-Za-z0-9_-]+")


class AccessEditError(ValueError):
    """The file cannot be changed like this; the message says what to do."""


@contextmanager
def locked(path: Path) -> Iterator[Path]:
    """The file that `path` leads to, while no other command changes one in its folder."""
    target = path.resolve()
    if target.is_dir():
        raise AccessEditError(f"{path} is a folder: name the file in it that shall be changed")
    if not target.parent.is_dir():
        raise AccessEditError(f"folder {target.parent} does not exist: make it, or name another file")
    folder = os.open(target.parent, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        yield target
    finally:
        os.close(folder)  # and with it the lock


def read_text(path: Path) -> str:
    """The file's text, line ends as they are; empty where there is no file yet."""
    try:
        return path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        return ""
    except UnicodeDecodeError as error:
        raise AccessEditError(f"{path} is not UTF-8 ({error}): save it as UTF-8") from error


def with_key(
    text: str,
    key: ApiKey,
    *,
    tenant: str,
    rights: tuple[Right, ...] | None,
    created: datetime,
    expires: datetime | None,
) -> str:
    """The text with one key more, and with its tenant where that is new."""
    known = tomllib.loads(text).get("tenants", {})
    if not TENANT_NAME.fullmatch(tenant):
        raise AccessEditError(
            f"{tenant!r} is no name for a tenant: 1 to 64 letters, digits, dots, dashes or underscores"
        )
    if tenant in known and rights is not None:
        raise AccessEditError(
            f"tenant {tenant} is there already: change its rights in the file, and leave --rights out"
        )
    lines = [] if text else [_HEADER]
    if text and not text.endswith("\n"):
        lines.append("\n")
    if tenant not in known:
        lines.append(f"\n[tenants.{tenant if _BARE.fullmatch(tenant) else json.dumps(tenant)}]\n")
        if rights is not None:
            lines.append(f"rights = {json.dumps([right.value for right in rights])}\n")
    lines.append(f'\n[[keys]]\nid = "{key.id}"\ntenant = "{tenant}"\nsha256 = "{key.secret.digest().hex()}"\n')
    lines.append(f"created = {_toml_moment(created)}\n")
    if expires is not None:
        lines.append(f"expires = {_toml_moment(expires)}\n")
    return text + "".join(lines)


def with_revoked(text: str, key_id: str) -> str:
    """The text in which the key is revoked: a line more below its id."""
    lines = text.splitlines(keepends=True)
    is_its_id = re.compile(rf"""\s*id\s*=\s*["']{re.escape(key_id)}["']\s*(#.*)?""")
    found = [number for number, line in enumerate(lines) if is_its_id.fullmatch(line.rstrip("\r\n"))]
    if len(found) != 1:
        raise AccessEditError(
            f'there is no line of its own with id = "{key_id}": write revoked = true beside that key by hand'
        )
    at = found[0] + 1
    if not lines[at - 1].endswith("\n"):
        lines[at - 1] += "\n"
    return "".join([*lines[:at], "revoked = true\n", *lines[at:]])


def parse(text: str, path: Path) -> Access:
    try:
        return parse_access({path: text})
    except StartupError as error:
        raise AccessEditError(str(error).removeprefix("access.file: ")) from error


def is_only_change(before: Access, after: Access, key_id: str) -> bool:
    """Whether all tenants and all other keys are as they were, and the key is there."""
    others = {name: key for name, key in after.keys.items() if name != key_id}
    return (
        key_id in after.keys
        and others == {name: key for name, key in before.keys.items() if name != key_id}
        and {name: after.tenants.get(name) for name in before.tenants} == before.tenants
    )


def write(path: Path, text: str) -> None:
    """Takes the file's place at once, for its owner alone to read and write."""
    try:
        before = path.stat()
    except FileNotFoundError:
        before = None
    number, unfinished = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")  # mode 0600
    try:
        with os.fdopen(number, "w", encoding="utf-8", newline="") as file:
            file.write(text)
            file.flush()
            if before is not None and (before.st_uid, before.st_gid) != (os.geteuid(), os.getegid()):
                os.fchown(file.fileno(), before.st_uid, before.st_gid)  # the server's user goes on reading it
            os.fsync(file.fileno())
        os.replace(unfinished, path)
    except BaseException:
        Path(unfinished).unlink(missing_ok=True)
        raise


def _toml_moment(moment: datetime) -> str:
    utc = moment.astimezone(UTC)
    if utc.time() == datetime.min.time():
        return utc.date().isoformat()
    return utc.replace(microsecond=0).isoformat().replace("+00:00", "Z")
