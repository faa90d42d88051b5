"""Two network namespaces with a line between them that delays packets and loses some: what `tc netem` does, in Python.

Each namespace has a TUN device whose other end is here, so that real TCP meets real loss, also on kernels without
netem. Needs root, `ip` and /dev/net/tun.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import random
import struct
import subprocess
import threading
from pathlib import Path
from types import TracebackType
from typing import Self

_TUNSETIFF = 0x400454CA
_IFF_TUN, _IFF_NO_PI = 0x0001, 0x1000
_MAX_PACKET = 1 << 16
ENDS = ("client", "server")
ADDRESSES = {"client": "10.77.0.1", "server": "10.77.0.2"}


class LossyNetwork:
    """For the length of a `with` block. `delay_seconds` is one way."""

    def __init__(self, *, delay_seconds: float, loss: float, seed: int = 0) -> None:
        self.delay_seconds, self.loss = delay_seconds, loss
        self.num_packets = self.num_lost = 0
        self._random = random.Random(seed)
        self._names = {end: f"preceptor-{os.getpid()}-{end}" for end in ENDS}
        self._devices: dict[str, int] = {}
        self._made: list[str] = []
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def prefix(self, end: str) -> tuple[str, ...]:
        """Stands before a command that shall run at this end."""
        return ("ip", "netns", "exec", self._names[end])

    def __enter__(self) -> Self:
        try:
            for end in ENDS:
                self._open(end)
        except BaseException:
            self._close()
            raise
        self._thread.start()
        self._loop.call_soon_threadsafe(self._listen)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._close()
        self._loop.close()

    def _open(self, end: str) -> None:
        name, device = self._names[end], f"pt{os.getpid()}{end[0]}"
        _ip("netns", "add", name)
        self._made.append(name)
        self._devices[end] = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
        fcntl.ioctl(self._devices[end], _TUNSETIFF, struct.pack("16sH", device.encode(), _IFF_TUN | _IFF_NO_PI))
        _ip("link", "set", device, "netns", name)
        _ip("-n", name, "addr", "add", f"{ADDRESSES[end]}/24", "dev", device)
        _ip("-n", name, "link", "set", device, "up")
        _ip("-n", name, "link", "set", "lo", "up")

    def _listen(self) -> None:
        client, server = (self._devices[end] for end in ENDS)
        self._loop.add_reader(client, self._carry, client, server)
        self._loop.add_reader(server, self._carry, server, client)

    def _carry(self, here: int, there: int) -> None:
        packet = os.read(here, _MAX_PACKET)
        self.num_packets += 1
        if self._random.random() < self.loss:
            self.num_lost += 1
            return
        self._loop.call_later(self.delay_seconds, self._deliver, there, packet)

    def _deliver(self, there: int, packet: bytes) -> None:
        try:
            os.write(there, packet)
        except OSError:
            self.num_lost += 1  # the device's queue is full, or it is gone: a packet is lost as packets are

    def _close(self) -> None:
        for device in self._devices.values():
            os.close(device)
        for name in self._made:
            _ip("netns", "del", name)
        self._devices, self._made = {}, []


def is_permitted() -> bool:
    """Whether this process may make namespaces and devices; made and taken away again."""
    if not Path("/dev/net/tun").exists():
        return False
    try:
        with LossyNetwork(delay_seconds=0.0, loss=0.0):
            return True
    except (OSError, subprocess.CalledProcessError):
        return False


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)
