"""The file of a score cache: SQLite, bounded in bytes, the least recently used leaves first. Knows no scores.

Several processes may use one file (WAL). Every value has a checksum over its key and its bytes, so that what a disk
changed, or what stands under another key, is no value.
"""

from __future__ import annotations

import hashlib
import sqlite3
from pathlib import Path

SCHEMA = 1
_APPLICATION_ID = 0x50524543  # "PREC": by which another program's file is known
_BUSY_SECONDS = 10.0
_PAGE_BYTES = 4096
_MAX_JOURNAL_BYTES = 16 << 20
_CHECKSUM_BYTES = 16
_EVICTED_AT_ONCE = 64

_TABLES = f"""
CREATE TABLE entries (key BLOB PRIMARY KEY, num_bytes INTEGER NOT NULL, used INTEGER NOT NULL, checksum BLOB NOT NULL,
                      value BLOB NOT NULL);
CREATE INDEX entries_by_use ON entries (used);
CREATE TABLE facts (name TEXT PRIMARY KEY, checksum BLOB NOT NULL, value BLOB NOT NULL);
CREATE TABLE total (num_bytes INTEGER NOT NULL);
INSERT INTO total VALUES (0);
PRAGMA application_id = {_APPLICATION_ID};
PRAGMA user_version = {SCHEMA};
"""


class ForeignFileError(Exception):
    """The file is no score cache, or one of another version."""


class DamagedEntryError(Exception):
    """A value is not the one that was stored."""


class CacheFile:
    """An open cache, for one thread at a time. Its methods raise sqlite3.Error where the file or the disk fails."""

    def __init__(self, path: Path, *, max_bytes: int, must_exist: bool) -> None:
        """Raises sqlite3.Error, OSError or ForeignFileError where it cannot be used."""
        self._max_bytes = max_bytes
        if not must_exist:
            path.parent.mkdir(parents=True, exist_ok=True)
        mode = "rw" if must_exist else "rwc"
        self._db = sqlite3.connect(
            f"{path.absolute().as_uri()}?mode={mode}",
            uri=True,
            timeout=_BUSY_SECONDS,
            isolation_level=None,
            check_same_thread=False,
        )
        try:
            if not must_exist:
                self._prepare()
            self._check()
        except BaseException:
            self._db.close()
            raise

    def get(self, key: bytes) -> bytes | None:
        """The value, which counts as used by that. Raises DamagedEntryError."""
        row = self._db.execute("SELECT checksum, value FROM entries WHERE key = ?", (key,)).fetchone()
        if row is None:
            return None
        checksum, value = row
        _check_value(key, value, checksum)
        self._touch(key)
        return bytes(value)

    def put(self, key: bytes, value: bytes) -> bool:
        """Stores a value in the place of any before it; False where it is larger than all values may be together."""
        num_bytes = _bytes_on_disk(value)
        if num_bytes > self._max_bytes:
            return False
        with _Transaction(self._db):
            self._remove(key)
            self._evict(self._max_bytes - num_bytes)
            self._db.execute(
                "INSERT INTO entries SELECT ?, ?, coalesce(max(used), 0) + 1, ?, ? FROM entries",
                (key, num_bytes, _checksum(key, value), value),
            )
            self._db.execute("UPDATE total SET num_bytes = num_bytes + ?", (num_bytes,))
        return True

    def discard(self, key: bytes) -> None:
        """Removes a value, if it is there."""
        with _Transaction(self._db):
            self._remove(key)

    def get_fact(self, name: str) -> bytes | None:
        """A value that is never evicted. Raises DamagedEntryError."""
        row = self._db.execute("SELECT checksum, value FROM facts WHERE name = ?", (name,)).fetchone()
        if row is None:
            return None
        checksum, value = row
        _check_value(name.encode(), value, checksum)
        return bytes(value)

    def put_fact(self, name: str, value: bytes) -> None:
        """Stores a value that is never evicted: few, and small."""
        row = (name, _checksum(name.encode(), value), value)
        self._db.execute("INSERT OR REPLACE INTO facts VALUES (?, ?, ?)", row)

    def fact_names(self, prefix: str) -> list[str]:
        """In order."""
        names = [name for (name,) in self._db.execute("SELECT name FROM facts ORDER BY name")]
        return [name for name in names if name.startswith(prefix)]

    def size(self) -> tuple[int, int]:
        """Number of values, and their bytes on disk."""
        ((number,),) = self._db.execute("SELECT count(*) FROM entries")
        ((num_bytes,),) = self._db.execute("SELECT num_bytes FROM total")
        return int(number), int(num_bytes)

    def close(self) -> None:
        self._db.close()

    def _prepare(self) -> None:
        if self._has_tables():
            self._check()  # before anything is written: it may be another program's
        self._db.execute("PRAGMA journal_mode = WAL")
        # A cache may lose its last entries in a power cut, and is whole all the same.
        self._db.execute("PRAGMA synchronous = NORMAL")
        self._db.execute(f"PRAGMA journal_size_limit = {_MAX_JOURNAL_BYTES}")
        with _Transaction(self._db):
            if not self._has_tables():
                for statement in _TABLES.split(";"):
                    self._db.execute(statement)

    def _has_tables(self) -> bool:
        ((num_tables,),) = self._db.execute("SELECT count(*) FROM sqlite_schema")
        return bool(num_tables)

    def _check(self) -> None:
        ((application_id,),) = self._db.execute("PRAGMA application_id")
        ((version,),) = self._db.execute("PRAGMA user_version")
        if application_id != _APPLICATION_ID:
            raise ForeignFileError("it is no score cache, but another SQLite file")
        if version != SCHEMA:
            raise ForeignFileError(f"it is of version {version}, this client reads and writes {SCHEMA}")

    def _touch(self, key: bytes) -> None:
        try:
            # One statement is one transaction; a number above all others, whichever process gave them.
            self._db.execute("UPDATE entries SET used = (SELECT max(used) FROM entries) + 1 WHERE key = ?", (key,))
        except sqlite3.OperationalError:
            # The value was read all the same; on a full disk, or a read-only one, the order of use stays as it is.
            return

    def _remove(self, key: bytes) -> None:
        for (num_bytes,) in self._db.execute(
            "DELETE FROM entries WHERE key = ? RETURNING num_bytes", (key,)
        ).fetchall():
            self._db.execute("UPDATE total SET num_bytes = num_bytes - ?", (num_bytes,))

    def _evict(self, max_bytes: int) -> None:
        """Until no more than that is left."""
        while self.size_in_bytes() > max_bytes:
            oldest = self._db.execute(
                "SELECT key, num_bytes FROM entries ORDER BY used LIMIT ?", (_EVICTED_AT_ONCE,)
            ).fetchall()
            if not oldest:
                self._db.execute("UPDATE total SET num_bytes = 0")
                return
            surplus = self.size_in_bytes() - max_bytes
            for key, num_bytes in oldest:
                if surplus <= 0:
                    break
                self._remove(key)
                surplus -= num_bytes

    def size_in_bytes(self) -> int:
        """Of all values, on disk."""
        ((num_bytes,),) = self._db.execute("SELECT num_bytes FROM total")
        return int(num_bytes)


class _Transaction:
    """Writes all of a block, or nothing; waits for other processes before it reads."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db

    def __enter__(self) -> None:
        self._db.execute("BEGIN IMMEDIATE")

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self._db.execute("COMMIT")
        elif self._db.in_transaction:
            self._db.execute("ROLLBACK")


def _checksum(key: bytes, value: bytes) -> bytes:
    return hashlib.blake2b(len(key).to_bytes(8, "little") + key + value, digest_size=_CHECKSUM_BYTES).digest()


def _check_value(key: bytes, value: object, checksum: object) -> None:
    """Raises DamagedEntryError. What a disk changed may be of another type too."""
    if not isinstance(value, bytes) or checksum != _checksum(key, value):
        raise DamagedEntryError


def _bytes_on_disk(value: bytes) -> int:
    """Of a row and its place in the indexes: SQLite stores what is large in whole pages."""
    return (len(value) // _PAGE_BYTES + 2) * _PAGE_BYTES if len(value) > _PAGE_BYTES // 4 else len(value) + 256
