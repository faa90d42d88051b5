"""Connections that send a byte now and then and never finish a request. Knows no protocol beyond the first bytes."""

from __future__ import annotations

import socket
import ssl
import threading
from types import TracebackType
from typing import Self

GRPC = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
HTTP = b"POST /v1/topk HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 100000\r\nX-Slow: "
BYTE_SECONDS = 1.0


class SlowLoris:
    """Holds `count` connections open, in a thread, for the length of a `with` block."""

    def __init__(self, address: str, opening: bytes, *, count: int, tls: bool = False) -> None:
        host, _, port = address.rpartition(":")
        self._target = (host, int(port))
        self._opening, self._count, self._tls = opening, count, tls
        self._sockets: list[socket.socket] = []
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.num_opened = self.num_ended = 0
        """Opened here; ended by the server."""

    def __enter__(self) -> Self:
        for _ in range(self._count):
            try:
                self._sockets.append(self._connect())
            except OSError:
                self.num_ended += 1  # turned away at once
        self.num_opened = len(self._sockets)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._is_over.set()
        self._thread.join()
        for one in self._sockets:
            one.close()

    def _connect(self) -> socket.socket:
        plain = socket.create_connection(self._target, timeout=5.0)
        if not self._tls:
            return plain
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        context.set_alpn_protocols(["h2", "http/1.1"])
        try:
            return context.wrap_socket(plain)
        except OSError:
            plain.close()
            raise

    def _run(self) -> None:
        sent = 0
        while not self._is_over.is_set():
            byte = self._opening[sent : sent + 1] or b"x"
            sent += 1
            for one in list(self._sockets):
                if not _send(one, byte):
                    self._sockets.remove(one)
                    one.close()
                    self.num_ended += 1
            self._is_over.wait(BYTE_SECONDS)


def _send(one: socket.socket, byte: bytes) -> bool:
    """Whether the other side still listens."""
    try:
        one.settimeout(0.001)
        try:
            if one.recv(1 << 16) == b"":
                return False
        except (TimeoutError, ssl.SSLWantReadError):
            pass
        one.settimeout(1.0)
        one.sendall(byte)
    except OSError:
        return False
    return True
