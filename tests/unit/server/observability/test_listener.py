from __future__ import annotations

import http.client
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus

import pytest
from preceptor_server.errors import StartupError
from preceptor_server.observability.listener import Listener
from preceptor_server.observability.pages import Page

LARGE = b"x" * 20_000_000


def answer(path: str) -> Page | None:
    pages = {"/metrics": b"asked_total 1\n", "/large": LARGE}
    return Page(body=pages[path]) if path in pages else None


@contextmanager
def listening(
    *, max_connections: int = 8, read_seconds: float = 30.0, write_seconds: float = 30.0
) -> Iterator[Listener]:
    listener = Listener(
        answer,
        host="127.0.0.1",
        port=0,
        max_connections=max_connections,
        read_seconds=read_seconds,
        write_seconds=write_seconds,
    )
    listener.start()
    try:
        yield listener
    finally:
        listener.stop()


def port_of(listener: Listener) -> int:
    return int(listener.address.rpartition(":")[2])


def connect(listener: Listener) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port_of(listener)), timeout=20)


def get(listener: Listener, path: str, *, method: str = "GET", host: str | None = None) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port_of(listener), timeout=20)
    connection.request(method, path, headers={} if host is None else {"Host": host})
    response = connection.getresponse()
    return response.status, response.read()


def is_closed(connection: socket.socket) -> bool:
    """Waits for it."""
    try:
        return connection.recv(1) == b""
    except ConnectionResetError:
        return True


def test_a_page_is_answered_and_nothing_else_is() -> None:
    with listening() as listener:
        assert get(listener, "/metrics") == (200, b"asked_total 1\n")
        assert get(listener, "/metrics?a=b") == (200, b"asked_total 1\n")
        assert get(listener, "/metrics", method="HEAD") == (200, b"")
        assert get(listener, "/")[0] == HTTPStatus.NOT_FOUND
        assert get(listener, "/metrics", method="POST")[0] == HTTPStatus.METHOD_NOT_ALLOWED


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost:9", 200),
        ("[::1]:9", 200),
        ("127.0.0.1", 200),
        ("evil.example", HTTPStatus.MISDIRECTED_REQUEST),
        ("10.0.0.1:9", HTTPStatus.MISDIRECTED_REQUEST),
    ],
)
def test_on_a_loopback_address_only_its_own_names_are_answered(host: str, status: int) -> None:
    with listening() as listener:
        assert get(listener, "/metrics", host=host)[0] == status


@pytest.mark.parametrize(
    "sent",
    [b"\x16\x03\x01\x02\x00\x01\r\n\r\n", b"GET /metrics\r\n\r\n", b"\xff\xfe\r\n\r\n", b"GET /metrics FTP/1\r\n\r\n"],
)
def test_what_is_no_request_is_refused(sent: bytes) -> None:
    with listening() as listener, connect(listener) as connection:
        connection.sendall(sent)
        assert connection.makefile("rb").readline() == b"HTTP/1.1 400 Bad Request\r\n"


def test_an_endless_head_is_refused() -> None:
    with listening() as listener, connect(listener) as connection:
        connection.sendall(b"GET /metrics HTTP/1.1\r\nA: " + b"a" * 9000)
        assert connection.makefile("rb").readline() == b"HTTP/1.1 400 Bad Request\r\n"


def test_silent_clients_make_room_for_those_that_ask() -> None:
    with listening(max_connections=4) as listener:
        silent = [connect(listener) for _ in range(4)]
        for _ in range(3):
            assert get(listener, "/metrics")[0] == 200
        assert is_closed(silent[0]), "the oldest made room"
        for connection in silent:
            connection.close()


def test_drops_of_a_head_do_not_hold_a_connection() -> None:
    with listening(read_seconds=0.3) as listener, connect(listener) as connection:
        connection.settimeout(0.05)
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            try:
                connection.sendall(b"G")
                if connection.recv(1) == b"":
                    return
            except TimeoutError:
                continue
            except OSError:
                return
        pytest.fail("it was kept for 20 seconds")


def test_one_that_does_not_read_its_answer_is_dropped_and_keeps_nobody_waiting() -> None:
    with listening(write_seconds=0.3) as listener, connect(listener) as lazy:
        lazy.sendall(b"GET /large HTTP/1.1\r\n\r\n")
        assert get(listener, "/metrics")[0] == 200
        time.sleep(0.6)
        received = 0
        try:
            while chunk := lazy.recv(1 << 20):
                received += len(chunk)
        except ConnectionResetError:
            pass
        assert received < len(LARGE)


def test_a_large_answer_arrives_whole() -> None:
    with listening() as listener:
        assert get(listener, "/large") == (200, LARGE)


def test_it_answers_while_the_thread_that_made_it_is_busy() -> None:
    with listening() as listener:
        answered: list[tuple[int, bytes]] = []
        asking = threading.Thread(target=lambda: answered.append(get(listener, "/metrics")))
        asking.start()
        while not answered and asking.is_alive():
            sum(range(10_000))
        asking.join()
        assert answered == [(200, b"asked_total 1\n")]


def test_an_answer_that_fails_is_logged_and_the_next_is_given(caplog: pytest.LogCaptureFixture) -> None:
    def failing(path: str) -> Page | None:
        if path == "/fails":
            raise RuntimeError("on purpose")
        return answer(path)

    listener = Listener(failing, host="127.0.0.1", port=0)
    listener.start()
    try:
        with connect(listener) as connection:
            connection.sendall(b"GET /fails HTTP/1.1\r\n\r\n")
            assert is_closed(connection)
        assert get(listener, "/metrics")[0] == 200
    finally:
        listener.stop()
    assert "on purpose" in caplog.text


def test_a_port_in_use_is_told_with_the_way_out() -> None:
    with listening() as listener, pytest.raises(StartupError, match=r"Set observe\.port to another, or to 0"):
        Listener(answer, host="127.0.0.1", port=port_of(listener))


def test_stopping_ends_what_is_open_and_twice_is_fine() -> None:
    with listening() as listener, connect(listener) as connection:
        assert get(listener, "/metrics")[0] == 200
        listener.stop()
        listener.stop()
        assert is_closed(connection)
    Listener(answer, host="127.0.0.1", port=0).stop()  # never started


OUT_OF_DESCRIPTORS = """
import logging, resource, sys
from preceptor_server.observability.listener import Listener
from preceptor_server.observability.pages import Page
logging.basicConfig(stream=sys.stdout)
listener = Listener(lambda path: Page(body=b"here"), host="127.0.0.1", port=0, max_connections=1000, read_seconds=60)
resource.setrlimit(resource.RLIMIT_NOFILE, (24, 24))
listener.start()
print(listener.address, flush=True)
sys.stdin.read()
listener.stop()
"""


def test_without_file_descriptors_it_says_so_and_goes_on_once_there_are_some() -> None:
    server = subprocess.Popen(
        [sys.executable, "-u", "-c", OUT_OF_DESCRIPTORS], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert server.stdin is not None
        assert server.stdout is not None
        port = int(server.stdout.readline().rpartition(":")[2])
        held = [socket.create_connection(("127.0.0.1", port), timeout=20) for _ in range(40)]
        assert "observe cannot take a connection: [Errno 24]" in server.stdout.readline()
        for connection in held:
            connection.close()
        with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
            connection.sendall(b"GET / HTTP/1.1\r\n\r\n")
            assert connection.makefile("rb").read().endswith(b"here")
        rest, _ = server.communicate(timeout=20)
        assert len(rest.splitlines()) < 25, "at most a line a second"
        assert server.returncode == 0
    finally:
        server.kill()
        server.wait()
