"""`preceptor-server keys new|list|revoke`: the keys of an access file, for whoever runs a server."""

from __future__ import annotations

import argparse
import sys
from datetime import UTC, date, datetime
from pathlib import Path

from preceptor_server.tenants import access_edit as edit
from preceptor_server.tenants.access_edit import AccessEditError
from preceptor_server.tenants.access_file import Access, as_moment
from preceptor_server.tenants.keys import KeyRecord, make_key
from preceptor_server.tenants.tenant import Right

PROGRAM = "preceptor-server keys"


def run(arguments: list[str]) -> int:
    """0 = done, 2 = it cannot be done, and why on stderr."""
    options = _parser().parse_args(arguments)
    try:
        if options.command == "new":
            _new(options.file, tenant=options.tenant, rights=options.rights, expires=options.expires)
        elif options.command == "revoke":
            _revoke(options.file, options.id)
        else:
            _list(options.file)
    except (AccessEditError, OSError) as error:
        sys.stderr.write(f"{PROGRAM}: {error}\n")
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(PROGRAM, description="Keys of callers, as SHA-256 hashes in an access file.")
    commands = parser.add_subparsers(dest="command", required=True)
    new = commands.add_parser("new", help="make a key: printed once, on stdout; the file keeps its hash")
    new.add_argument("--tenant", required=True, help="whose key it is; a tenant that is new is added to the file")
    new.add_argument(
        "--expires", type=_moment, metavar="DATE", help="refuse it from then on: 2031-01-31, UTC, or a moment"
    )
    new.add_argument(
        "--rights",
        type=_right,
        nargs="+",
        metavar="RIGHT",
        help=f"of a new tenant: {', '.join(Right)}; default: all but the last",
    )
    listing = commands.add_parser("list", help="show the keys, without secrets")
    revoke = commands.add_parser("revoke", help="refuse a key from now on; a server that runs does so within 2 s")
    revoke.add_argument("id", help="the middle part of the key: prk_<id>_<secret>")
    for command in (new, listing, revoke):
        command.add_argument(
            "--file", type=Path, default=Path("access.toml"), help="access file (default: %(default)s)"
        )
    return parser


def _moment(text: str) -> datetime:
    try:
        return as_moment(date.fromisoformat(text) if len(text) == 10 else datetime.fromisoformat(text))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r}: {error}") from error


def _right(text: str) -> Right:
    try:
        return Right(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is none of {', '.join(Right)}") from error


def _new(file: Path, *, tenant: str, rights: list[Right] | None, expires: datetime | None) -> None:
    now = datetime.now(UTC)
    if expires is not None and expires <= now:
        raise AccessEditError(f"--expires {expires.isoformat()} is past: name a later date, or leave it out")
    key = make_key()
    with edit.locked(file) as path:
        text = edit.read_text(path)
        before = edit.parse(text, path)
        text = edit.with_key(
            text,
            key,
            tenant=tenant,
            rights=None if rights is None else tuple(rights),
            created=now,
            expires=expires,
        )
        if not edit.is_only_change(before, edit.parse(text, path), key.id):
            raise AccessEditError(
                f"a key cannot be added at the end of {path}: add it by hand, as docs/access.md shows"
            )
        edit.write(path, text)
    until = "" if expires is None else f", until {expires.isoformat()}"
    sys.stderr.write(f"key {key.id} of tenant {tenant}{until}: its hash is in {path}, the key is shown only here\n")
    sys.stdout.write(f"{key.reveal()}\n")


def _revoke(file: Path, key_id: str) -> None:
    with edit.locked(file) as path:
        text = edit.read_text(path)
        before = edit.parse(text, path)
        key = before.keys.get(key_id)
        if key is None:
            raise AccessEditError(f"{path} has no key of this id: {PROGRAM} list shows them")  # it may be a whole key
        if not key.is_revoked:
            text = edit.with_revoked(text, key_id)
            if not _is_revoked_in(text, path, key_id, before):
                raise AccessEditError(f"{key_id} cannot be revoked in {path}: write revoked = true beside it by hand")
            edit.write(path, text)
    sys.stderr.write(f"key {key_id} of tenant {key.tenant} is revoked in {path}\n")


def _is_revoked_in(text: str, path: Path, key_id: str, before: Access) -> bool:
    try:
        after = edit.parse(text, path)
    except AccessEditError:
        return False  # such as a key that says revoked = false already
    return after.keys[key_id].is_revoked and edit.is_only_change(before, after, key_id)


def _list(file: Path) -> None:
    if not file.exists():
        raise AccessEditError(f"{file} does not exist: {PROGRAM} new --tenant NAME --file {file} makes it")
    keys = edit.parse(edit.read_text(file), file).keys
    now = datetime.now(UTC)
    rows = [("id", "tenant", "created", "expires", "state")]
    for key in sorted(keys.values(), key=lambda key: (key.tenant, key.id)):
        rows.append((key.id, key.tenant, _day(key.created), _day(key.expires), _state(key, now)))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        sys.stdout.write("  ".join(map(str.ljust, row, widths)).rstrip() + "\n")


def _day(moment: datetime | None) -> str:
    return "-" if moment is None else f"{moment:%Y-%m-%d}"


def _state(key: KeyRecord, now: datetime) -> str:
    if key.is_revoked:
        return "revoked"
    return "expired" if key.expires is not None and now >= key.expires else "valid"
