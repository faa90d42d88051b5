"""The file of a score cache: bounded, shared by processes, and never the source of a wrong answer."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from preceptor_client.cache_file import CacheFile, DamagedEntryError, ForeignFileError
from preceptor_client.errors import NotInCacheError
from preceptor_client.score_cache import ScoreCache

MIB = 1 << 20


def open_file(path: Path, *, max_bytes: int = 64 * MIB) -> CacheFile:
    return CacheFile(path, max_bytes=max_bytes, must_exist=False)


def key(number: int) -> bytes:
    return number.to_bytes(32, "little")


def test_what_was_stored_is_found_again_in_another_opening(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "cache"
    first = open_file(path)
    assert first.get(key(1)) is None
    assert first.put(key(1), b"one")
    first.put_fact("info", b"said")
    first.close()
    second = CacheFile(path, max_bytes=MIB, must_exist=True)
    assert (second.get(key(1)), second.get_fact("info"), second.fact_names("in")) == (b"one", b"said", ["info"])
    second.close()


def test_the_least_recently_used_leave_first(tmp_path: Path) -> None:
    value = bytes(3900)  # two pages
    cache = open_file(tmp_path / "cache", max_bytes=10 * 8192)
    for number in range(10):
        cache.put(key(number), value)
    assert cache.get(key(0)) == value
    for number in range(10, 15):
        cache.put(key(number), value)
    kept = [number for number in range(15) if cache.get(key(number)) is not None]
    assert kept == [0, 6, 7, 8, 9, 10, 11, 12, 13, 14]
    assert cache.size() == (10, 10 * 8192)
    cache.close()


@pytest.mark.parametrize("num_bytes", [100, 2000, 5000, 70_000])
def test_the_file_stays_within_its_bound(tmp_path: Path, num_bytes: int) -> None:
    max_bytes = 4 * MIB
    cache = open_file(tmp_path / "cache", max_bytes=max_bytes)
    for number in range(3 * max_bytes // num_bytes // (1 if num_bytes > 1000 else 8)):
        cache.put(key(number), number.to_bytes(4, "little") * (num_bytes // 4))
    assert cache.size()[1] <= max_bytes
    assert cache.size()[1] > max_bytes / 2 or num_bytes == 100
    cache.close()  # the journal becomes part of the file
    assert (tmp_path / "cache").stat().st_size <= max_bytes * 1.1


def test_storing_again_replaces_and_counts_once_and_what_is_too_large_is_not_stored(tmp_path: Path) -> None:
    cache = open_file(tmp_path / "cache", max_bytes=MIB)
    cache.put(key(1), bytes(100_000))
    once = cache.size()
    cache.put(key(1), b"x" * 100_000)
    assert cache.size() == once
    assert cache.get(key(1)) == b"x" * 100_000
    assert not cache.put(key(2), bytes(MIB))
    assert cache.size() == once
    cache.discard(key(1))
    cache.discard(key(3))
    assert cache.size() == (0, 0)
    cache.close()


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE entries SET value = x'00ff'",
        "UPDATE entries SET value = 7",
        "UPDATE entries SET value = 'one'",
        "UPDATE entries SET checksum = x'00'",
        "UPDATE entries SET value = (SELECT value FROM entries WHERE key = x'02')",
        "UPDATE facts SET value = x'00'",
    ],
)
def test_a_changed_value_is_not_given_out(tmp_path: Path, change: str) -> None:
    cache = open_file(tmp_path / "cache")
    cache.put(b"\x01", b"one")
    cache.put(b"\x02", b"two")
    cache.put_fact("info", b"said")
    with sqlite3.connect(tmp_path / "cache") as db:
        db.execute(change)
    db.close()
    with pytest.raises(DamagedEntryError):
        cache.get_fact("info") if "facts" in change else cache.get(b"\x01")
    cache.close()


def test_other_programs_files_and_other_versions_are_left_alone(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "other") as db:
        db.execute("CREATE TABLE mine (x)")
    db.close()
    before = (tmp_path / "other").read_bytes()
    with pytest.raises(ForeignFileError, match="no score cache"):
        open_file(tmp_path / "other")
    assert (tmp_path / "other").read_bytes() == before
    open_file(tmp_path / "cache").close()
    with sqlite3.connect(tmp_path / "cache") as db:
        db.execute("PRAGMA user_version = 2")
    db.close()
    with pytest.raises(ForeignFileError, match="of version 2, this client reads and writes 1"):
        open_file(tmp_path / "cache")


FILL = """
import sys
from pathlib import Path
from preceptor_client.cache_file import CacheFile
number = int(sys.argv[2])
cache = CacheFile(Path(sys.argv[1]), max_bytes=1 << 20, must_exist=False)
for index in range(150):
    cache.put((index % 40).to_bytes(32, "little"), bytes([index % 40]) * 9000)
    for other in range(3):
        found = cache.get(((index + other) % 40).to_bytes(32, "little"))
        assert found in (None, bytes([(index + other) % 40]) * 9000)
cache.close()
"""


def test_processes_that_open_and_fill_one_file_at_once_lose_nothing_and_find_nothing_wrong(tmp_path: Path) -> None:
    path = tmp_path / "cache"
    processes = [
        subprocess.Popen([sys.executable, "-c", FILL, str(path), str(number)], stderr=subprocess.PIPE, text=True)
        for number in range(4)
    ]
    assert [(process.communicate(timeout=120)[1], process.returncode) for process in processes] == [("", 0)] * 4
    cache = open_file(path)
    with sqlite3.connect(path) as db:
        ((counted,),) = db.execute("SELECT sum(num_bytes) FROM entries")
        ((total,),) = db.execute("SELECT num_bytes FROM total")
        ((sound,),) = db.execute("PRAGMA integrity_check")
    db.close()
    cache.close()
    assert (total, sound) == (counted, "ok")
    assert total <= MIB


async def test_a_file_that_is_no_database_warns_once_and_holds_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "cache").write_bytes(b"not a database, not at all" * 400)
    with ScoreCache(tmp_path / "cache") as cache:
        await cache.put(key(1), b"one")
        assert await cache.get(key(1)) is None
        assert await cache.size() == (0, 0)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "file is not a database" in caplog.text
    assert "every group is asked of the server" in caplog.text


async def test_pages_that_a_disk_spoiled_end_the_cache_with_one_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "cache"
    filled = open_file(path)
    for number in range(200):
        filled.put(key(number), bytes([number]) * 5000)
    filled.close()
    data = bytearray(path.read_bytes())
    for page in range(1, len(data) // 4096, 2):
        data[page * 4096 : page * 4096 + 2000] = b"\xa5" * 2000
    path.write_bytes(data)
    with ScoreCache(path) as cache:
        for number in range(200):
            assert await cache.get(key(number)) in (None, bytes([number]) * 5000)
            await cache.put(key(1000 + number), b"new")
    assert [record.levelname for record in caplog.records] == ["WARNING"]


async def test_calls_at_once_on_a_file_that_fails_all_find_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(self: CacheFile, key: bytes) -> bytes | None:
        raise sqlite3.DatabaseError("database disk image is malformed")

    with ScoreCache(tmp_path / "cache") as cache:
        monkeypatch.setattr(CacheFile, "get", fail)
        found = await asyncio.gather(*(cache.get(key(number)) for number in range(20)), cache.size())
    assert found == [None] * 20 + [(0, 0)]
    assert [record.levelname for record in caplog.records] == ["WARNING"]


FULL_DISK = """
import asyncio, logging, resource, sys
from preceptor_client.score_cache import ScoreCache
logging.basicConfig(level=logging.WARNING)
async def run():
    with ScoreCache(sys.argv[1]) as cache:
        await cache.put(b"first", bytes(10_000))
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        for number in range(50):
            await cache.put(bytes([number]), bytes(20_000))
        print(len(await cache.get(b"first")))
asyncio.run(run())
"""


def test_a_disk_that_is_full_stops_storing_with_one_warning_and_reading_goes_on(tmp_path: Path) -> None:
    # No file of the process may grow beyond 100,000 bytes: to SQLite the same as a disk without room.
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(tmp_path / "cache")], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout) == (0, "10000\n"), done.stderr
    assert done.stderr.count("WARNING") == 1
    assert "nothing more is stored in it" in done.stderr


async def test_an_answer_larger_than_the_cache_is_told_once_and_not_stored(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with ScoreCache(tmp_path / "cache", max_bytes=10_000) as cache:
        for number in range(3):
            await cache.put(key(number), bytes(20_000))
        assert await cache.size() == (0, 0)
    assert caplog.text.count("20000 bytes are more than max_bytes") == 1


def test_offline_needs_a_cache_that_can_be_read(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"missing cannot be used \(unable to open database file\): name one that"):
        ScoreCache(tmp_path / "missing", mode="offline")
    assert not (tmp_path / "missing").exists()
    (tmp_path / "text").write_text("text" * 2000)
    with pytest.raises(ValueError, match="file is not a database"):
        ScoreCache(tmp_path / "text", mode="offline")
    with pytest.raises(ValueError, match='must be "use", "refresh" or "offline"'):
        ScoreCache(tmp_path / "cache", mode="of")  # type: ignore[arg-type]  # the mistake
    with pytest.raises(ValueError, match="max_bytes=0 must be above 0"):
        ScoreCache(tmp_path / "cache", max_bytes=0)


async def test_a_damaged_entry_offline_is_a_miss_and_a_file_that_fails_is_an_error(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "cache"
    filled = open_file(path)
    filled.put(b"\x01", b"one")
    filled.close()
    with sqlite3.connect(path) as db:
        db.execute("UPDATE entries SET value = x'00'")
    db.close()
    with ScoreCache(path, mode="offline") as cache:
        assert await cache.get(b"\x01") is None
        await cache.put(b"\x02", b"two")
        assert await cache.get(b"\x02") is None
        with sqlite3.connect(path) as db:
            db.execute("DROP TABLE entries")
        db.close()
        with pytest.raises(NotInCacheError, match="cannot be read"):
            await cache.get(b"\x01")
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
