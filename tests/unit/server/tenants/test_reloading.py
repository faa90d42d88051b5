from __future__ import annotations

import logging
import os
import threading
from pathlib import Path

import pytest
from preceptor_server.errors import StartupError
from preceptor_server.tenants.reloading import ReloadedFiles, Reloader

from tests.unit.server.tenants.clocks import Clock


def number_in(path: Path) -> int:
    try:
        return int(path.read_text())
    except ValueError as error:
        raise StartupError(f"{path} holds no number") from error
    except OSError as error:
        raise StartupError(f"{path} cannot be read") from error


class Numbers:
    """A reloaded number, and how often its file was read. Its clock is far ahead, so that files count as settled."""

    def __init__(self, path: Path) -> None:
        self.num_reads = 0
        self.clock = Clock(path.stat().st_mtime + 3600)

        def load() -> int:
            self.num_reads += 1
            return number_in(path)

        self.files = ReloadedFiles("number", load=load, paths=lambda: [path], wall_clock=self.clock)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "number"
    path.write_text("1")
    return path


def test_a_file_that_does_not_change_is_read_once(path: Path) -> None:
    numbers = Numbers(path)
    for _ in range(10):
        numbers.files.refresh()
    assert (numbers.files.value, numbers.num_reads, numbers.files.num_reloads) == (1, 1, 0)


def test_a_changed_file_becomes_the_value(path: Path) -> None:
    numbers = Numbers(path)
    path.write_text("22")
    numbers.files.refresh()
    assert (numbers.files.value, numbers.files.num_reloads) == (22, 1)


def test_a_file_replaced_by_one_of_the_same_size_and_time_is_seen(path: Path) -> None:
    numbers = Numbers(path)
    before = path.stat()
    other = path.with_name("other")
    other.write_text("2")
    os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
    other.replace(path)
    numbers.files.refresh()
    assert numbers.files.value == 2


def test_a_young_file_is_read_again_though_nothing_tells_that_it_changed(path: Path) -> None:
    """Two writes within the clock's tick, of equally many bytes, into the same file, leave the same traces."""
    numbers = Numbers(path)
    numbers.clock.seconds = path.stat().st_mtime + 0.5
    numbers.files.refresh()
    assert numbers.num_reads == 2


def test_swapped_symbolic_links_are_seen(tmp_path: Path) -> None:
    """As Kubernetes does it: number -> ..data/number, ..data -> a folder; only ..data is replaced."""
    for version, number in (("one", "1"), ("two", "2")):
        (tmp_path / version).mkdir()
        (tmp_path / version / "number").write_text(number)
    (tmp_path / "..data").symlink_to("one")
    (tmp_path / "number").symlink_to(Path("..data") / "number")
    numbers = Numbers(tmp_path / "number")
    (tmp_path / "new").symlink_to("two")
    (tmp_path / "new").replace(tmp_path / "..data")
    numbers.files.refresh()
    assert numbers.files.value == 2


def test_a_broken_file_leaves_the_value_and_is_told_and_counted_once(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    numbers = Numbers(path)
    path.write_text("x")
    for _ in range(5):
        numbers.files.refresh()
    assert (numbers.files.value, numbers.files.num_failures) == (1, 1)
    [record] = caplog.records
    assert record.levelno == logging.ERROR
    assert record.message == (
        f"number changed and cannot be used; what was read before stays in force: {path} holds no number"
    )
    path.unlink()
    numbers.files.refresh()
    assert (numbers.files.value, numbers.files.num_failures) == (1, 2)
    path.write_text("3")
    numbers.files.refresh()
    assert (numbers.files.value, numbers.files.num_failures) == (3, 2)


def test_a_file_that_is_broken_mended_and_broken_again_is_told_twice(path: Path) -> None:
    numbers = Numbers(path)
    for text in ("x", "1", "x"):
        path.write_text(text)
        numbers.files.refresh()
    assert numbers.files.num_failures == 2


def test_a_broken_file_at_the_start_raises(path: Path) -> None:
    path.write_text("x")
    with pytest.raises(StartupError, match="holds no number"):
        Numbers(path)


class Part:
    """Counts how often it is refreshed, and raises at first."""

    def __init__(self, *, num_errors: int = 0) -> None:
        self.num_errors = num_errors
        self.num_refreshes = 0
        self.is_refreshed_often = threading.Event()

    def refresh(self) -> None:
        self.num_refreshes += 1
        if self.num_refreshes >= 5:
            self.is_refreshed_often.set()
        if self.num_refreshes <= self.num_errors:
            raise KeyError("nobody foresaw this")


def test_parts_are_refreshed_until_it_is_stopped_whatever_one_of_them_raises(caplog: pytest.LogCaptureFixture) -> None:
    parts = [Part(num_errors=3), Part()]
    reloader = Reloader(parts, seconds=0.001)
    reloader.start()
    try:
        assert all(part.is_refreshed_often.wait(30) for part in parts)
    finally:
        reloader.stop()
    seen = [part.num_refreshes for part in parts]
    assert [record.message for record in caplog.records] == ["a reload failed"]
    assert not any(thread.name == "reloader" for thread in threading.enumerate())
    assert [part.num_refreshes for part in parts] == seen


def test_a_reloader_that_was_never_started_stops() -> None:
    Reloader([]).stop()
