"""The faults: each sets up its servers, tells the runs where to ask, and strikes when told to."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.service.lossy_network import ADDRESSES, LossyNetwork
from bench.service.lossy_network import is_permitted as may_make_networks
from bench.service.proxy import Proxy
from bench.service.room import Room
from bench.service.servers import STOP_SECONDS, Server, start_server
from bench.service.small_disk import SmallDisk
from bench.service.small_disk import is_permitted as may_mount

STOPPED_SECONDS, FULL_SECONDS, WRONG_SECONDS = 3.0, 2.0, 1.0
DELAY_SECONDS, LOSS = 0.2, 0.05
DISK_MEGABYTES = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """Servers that stand."""

    address: str
    strike: Callable[[], None]
    """Does the fault once, and mends it."""
    prefix: tuple[str, ...] = ()
    """Before the command of a run."""
    directory: Path | None = None
    """Where the runs write, if not beside their settings."""
    ends_runs: bool = False
    """A run may end, saved, by each strike, and is begun anew: docs/teacher_service.md says when."""
    lasts: bool = False
    """The fault is there all the time, and `strike` does nothing."""


class Replica:
    """A server that may be ended and started again on its port."""

    def __init__(self, room: Room, name: str, stack: ExitStack) -> None:
        self._room, self._folder = room, room.folder / name
        self.server = self._start(0)
        stack.callback(self.end)

    @property
    def address(self) -> str:
        return self.server.address

    def kill(self) -> None:
        """SIGKILL, and another one in its place."""
        self.server.kill()
        self.server = self._start(self._port)

    def roll(self) -> None:
        """SIGTERM, and another one in its place."""
        self.server.stop()
        self.server = self._start(self._port)

    def freeze(self) -> None:
        self.server.process.send_signal(signal.SIGSTOP)
        time.sleep(STOPPED_SECONDS)
        self.server.process.send_signal(signal.SIGCONT)

    def end(self) -> None:
        if self.server.is_alive():
            self.server.kill()

    @property
    def _port(self) -> int:
        return int(self.address.rpartition(":")[2])

    def _start(self, port: int) -> Server:
        return start_server(self._folder, self._room.tiny_llama(), tree=self._room.tree, port=port)


@contextmanager
def undisturbed(room: Room) -> Iterator[Stage]:
    """Nothing happens."""
    with ExitStack() as stack:
        yield Stage(address=Replica(room, "teacher", stack).address, strike=lambda: None, lasts=True)


@contextmanager
def killed(room: Room) -> Iterator[Stage]:
    """SIGKILL, then another server on the same port."""
    with ExitStack() as stack:
        teacher = Replica(room, "teacher", stack)
        yield Stage(address=teacher.address, strike=teacher.kill)


@contextmanager
def stopped(room: Room) -> Iterator[Stage]:
    """SIGSTOP, and SIGCONT later."""
    with ExitStack() as stack:
        teacher = Replica(room, "teacher", stack)
        yield Stage(address=teacher.address, strike=teacher.freeze)


@contextmanager
def cut(room: Room) -> Iterator[Stage]:
    """All connections are reset."""
    with ExitStack() as stack:
        proxy = stack.enter_context(Proxy(Replica(room, "teacher", stack).address))

        def strike() -> None:
            proxy.cut()

        yield Stage(address=proxy.address, strike=strike)


@contextmanager
def lossy(room: Room) -> Iterator[Stage]:
    """Packets take 0.2 s each way and 1 in 20 is lost; without permission to make networks, a proxy that stalls so."""
    with ExitStack() as stack:
        if may_make_networks():
            network = stack.enter_context(LossyNetwork(delay_seconds=DELAY_SECONDS, loss=LOSS))
            server = start_server(
                room.folder / "teacher",
                room.tiny_llama(),
                *("--listen.host", ADDRESSES["server"], "--listen.allow-insecure", "true"),
                tree=room.tree,
                prefix=network.prefix("server"),
            )
            stack.callback(server.kill)
            yield Stage(address=server.address, strike=lambda: None, prefix=network.prefix("client"), lasts=True)
            return
        proxy = stack.enter_context(Proxy(Replica(room, "teacher", stack).address))
        proxy.delay_seconds, proxy.loss = DELAY_SECONDS, LOSS
        yield Stage(address=proxy.address, strike=lambda: None, lasts=True)


@contextmanager
def full_disk(room: Room) -> Iterator[Stage]:
    """The disk of metrics, checkpoints and cache is full for two seconds."""
    with ExitStack() as stack:
        disk = stack.enter_context(SmallDisk(room.folder / "disk", megabytes=DISK_MEGABYTES))
        teacher = Replica(room, "teacher", stack)

        def strike() -> None:
            disk.fill()
            time.sleep(FULL_SECONDS)
            disk.empty()

        yield Stage(address=teacher.address, strike=strike, directory=disk.folder, ends_runs=True)


@contextmanager
def wrong_digests(room: Room) -> Iterator[Stage]:
    """One of two replicas answers wrong digests for a second."""
    with ExitStack() as stack:
        teacher = Replica(room, "teacher", stack)
        flag, address_file = room.folder / "wrong", room.folder / "wrong-address"
        for one in (flag, address_file):
            one.unlink(missing_ok=True)
        command = [sys.executable, "-m", "bench.service.wrong_replica"]
        process = subprocess.Popen(
            [*command, teacher.address, str(flag), str(address_file)], env=room.tree.environment()
        )
        stack.callback(process.wait, STOP_SECONDS)
        stack.callback(process.kill)
        while not address_file.exists() or not address_file.read_text():
            assert process.poll() is None, "the wrong replica did not start"
            time.sleep(0.05)

        def strike() -> None:
            flag.touch()
            time.sleep(WRONG_SECONDS)
            flag.unlink()

        yield Stage(address=f"{teacher.address},{address_file.read_text()}", strike=strike)


@contextmanager
def rolling_restart(room: Room) -> Iterator[Stage]:
    """Two replicas, each drained and started again, one after the other."""
    with ExitStack() as stack:
        replicas = [Replica(room, f"teacher-{index}", stack) for index in range(2)]

        def strike() -> None:
            for one in replicas:
                one.roll()

        yield Stage(address=",".join(one.address for one in replicas), strike=strike)


FAULTS = {
    "SIGKILL of the teacher": killed,
    "SIGSTOP of the teacher": stopped,
    "connections cut": cut,
    "200 ms each way, 5 % of packets lost": lossy,
    "full disk": full_disk,
    "a replica with wrong digests": wrong_digests,
    "rolling restart of two replicas": rolling_restart,
}


def why_not(name: str, room: Room) -> str:
    """Why a fault cannot be made on this machine; empty where it can."""
    if name == "full disk" and not may_mount(room.folder / "disk"):
        return "this process may mount no tmpfs"
    return ""


def how(name: str) -> str:
    """By which means, for the record."""
    if name.startswith("200 ms"):
        return "TUN devices in two network namespaces" if may_make_networks() else "a TCP proxy that stalls"
    return ""
