"""Servers under test: real processes on loopback, watched from outside, ended by their own id."""

from __future__ import annotations

import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil

from bench.service.engines import Teacher, command_of
from bench.service.trees import Tree

START_SECONDS = 180
STOP_SECONDS = 60
RESERVE_MIB = 2500
MIB = 2**20


@dataclass(slots=True, kw_only=True)
class Server:
    """Answers at `address`, and over HTTP at `http_url` where that was asked for."""

    process: subprocess.Popen[bytes]
    address: str
    http_url: str
    log: Path
    command: tuple[str, ...] = field(repr=False)

    def resident_mib(self) -> float:
        """Of the server and its children."""
        try:
            parent = psutil.Process(self.process.pid)
            resident: int = sum(one.memory_info().rss for one in (parent, *parent.children(recursive=True)))
            return resident / MIB
        except psutil.NoSuchProcess:
            return 0.0

    def cpu_seconds(self) -> float:
        """Of the server and its children, since they began."""
        parent = psutil.Process(self.process.pid)
        times = [one.cpu_times() for one in (parent, *parent.children(recursive=True))]
        return float(sum(one.user + one.system for one in times))

    def is_alive(self) -> bool:
        return self.process.poll() is None

    def log_bytes(self) -> int:
        return self.log.stat().st_size

    def log_lines(self) -> int:
        with self.log.open("rb") as lines:
            return sum(1 for _ in lines)

    def kill(self) -> None:
        """SIGKILL, to it and to what it started."""
        for one in psutil.Process(self.process.pid).children(recursive=True) if self.is_alive() else ():
            one.kill()
        self.process.kill()
        self.process.wait(STOP_SECONDS)

    def stop(self) -> int:
        """SIGTERM; returns the exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(STOP_SECONDS)


def start_server(
    folder: Path,
    teacher: Teacher,
    *arguments: str,
    tree: Tree,
    with_http: bool = False,
    port: int = 0,
    max_open_files: int | None = None,
    prefix: tuple[str, ...] = (),
) -> Server:
    """Waits until it answers. `prefix` stands before the command, such as ("ip", "netns", "exec", "teacher"). Raises
    SystemExit with the end of its log where it does not start."""
    folder.mkdir(parents=True, exist_ok=True)
    address_file, http_file, log = folder / "address", folder / "http-address", folder / "server.log"
    for one in (address_file, http_file):
        one.unlink(missing_ok=True)
    command = [*prefix, sys.executable, "-m", *command_of(teacher, tree), *arguments]
    command += ["--listen.port", str(port), "--listen.address-file", str(address_file)]
    if with_http:
        command += ["--http.port", "0", "--http.address-file", str(http_file)]

    def limit_open_files() -> None:
        if max_open_files is not None:
            resource.setrlimit(resource.RLIMIT_NOFILE, (max_open_files, max_open_files))

    with log.open("ab") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=output, env=tree.environment(), preexec_fn=limit_open_files
        )
    deadline = time.monotonic() + START_SECONDS
    waited_for = [address_file, *([http_file] if with_http else [])]
    while not all(one.exists() for one in waited_for):
        if process.poll() is not None or time.monotonic() > deadline:
            process.kill()
            process.wait(STOP_SECONDS)
            raise SystemExit(f"the server did not start: {' '.join(command)}\n{log.read_text()[-3000:]}")
        time.sleep(0.05)
    return Server(
        process=process,
        address=address_file.read_text().strip(),
        http_url=f"http://{http_file.read_text().strip()}" if with_http else "",
        log=log,
        command=tuple(command),
    )


@contextmanager
def running_server(
    folder: Path,
    teacher: Teacher,
    *arguments: str,
    tree: Tree,
    with_http: bool = False,
    max_open_files: int | None = None,
) -> Iterator[Server]:
    """A server for the length of the block."""
    server = start_server(folder, teacher, *arguments, tree=tree, with_http=with_http, max_open_files=max_open_files)
    try:
        yield server
    finally:
        if server.is_alive():
            server.kill()


class Watch:
    """Samples a server's resident memory until left."""

    def __init__(self, server: Server, *, every_seconds: float = 0.05) -> None:
        """Kills the server where it leaves less than RESERVE_MIB to everyone else on this machine."""
        self._server, self._every_seconds = server, every_seconds
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.has_killed = False
        self.before_mib = server.resident_mib()
        self.samples: list[tuple[float, float]] = []
        """Seconds of the monotonic clock, MiB."""

    @property
    def peak_mib(self) -> float:
        return max((mib for _, mib in self.samples), default=self.before_mib)

    @property
    def grown_mib(self) -> float:
        """The peak above what it was before."""
        return self.peak_mib - self.before_mib

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._is_over.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._is_over.wait(self._every_seconds):
            self.samples.append((time.monotonic(), self._server.resident_mib()))
            if psutil.virtual_memory().available / MIB < RESERVE_MIB and self._server.is_alive():
                self.has_killed = True
                print(f"killed the server: less than {RESERVE_MIB} MiB are free", file=sys.stderr, flush=True)
                self._server.kill()


class LogWatch:
    """Counts the lines that a server logs, second by second, until left."""

    def __init__(self, server: Server) -> None:
        self._log, self._offset = server.log, server.log_bytes()
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.per_second: list[int] = []

    @property
    def num_lines(self) -> int:
        return sum(self.per_second)

    @property
    def most_a_second(self) -> int:
        return max(self.per_second, default=0)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._is_over.set()
        self._thread.join()
        self._read()

    def _run(self) -> None:
        while not self._is_over.wait(1.0):
            self._read()

    def _read(self) -> None:
        with self._log.open("rb") as lines:
            lines.seek(self._offset)
            new = lines.read()
        self._offset += len(new)
        self.per_second.append(new.count(b"\n"))
