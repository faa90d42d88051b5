"""The little of HTTP/1.1 that scrapers and probes need: one request, GET or HEAD, one answer, closed. No sockets."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus

from preceptor_server.bind_address import is_loopback

TEXT = "text/plain; charset=utf-8"


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """An answer."""

    body: bytes
    status: HTTPStatus = HTTPStatus.OK
    media_type: str = TEXT
    allow: str = ""

    def to_bytes(self, *, with_body: bool = True) -> bytes:
        lines = [
            f"HTTP/1.1 {self.status.value} {self.status.phrase}",
            f"Content-Type: {self.media_type}",
            f"Content-Length: {len(self.body)}",
            "Cache-Control: no-store",
            "X-Content-Type-Options: nosniff",
            "Connection: close",
        ]
        if self.allow:
            lines.append(f"Allow: {self.allow}")
        head = "\r\n".join([*lines, "", ""]).encode()
        return head + self.body if with_body else head


def problem(status: HTTPStatus, detail: str, *, allow: str = "") -> Page:
    return Page(status=status, body=f"{detail}\n".encode(), allow=allow)


def bad_request(detail: str) -> Page:
    return problem(HTTPStatus.BAD_REQUEST, detail)


def answer_to(head: bytes, answer: Callable[[str], Page | None], *, bound_host: str) -> bytes:
    """The answer to a request whose head ends with an empty line."""
    request_line, *lines = head.partition(b"\r\n\r\n")[0].decode("latin-1").split("\r\n")
    parts = request_line.split(" ")
    if len(parts) != 3 or not parts[2].startswith("HTTP/1."):
        return bad_request("this is no HTTP/1.1 request").to_bytes()
    method, target, _ = parts
    if method not in ("GET", "HEAD"):
        return problem(HTTPStatus.METHOD_NOT_ALLOWED, "only GET and HEAD", allow="GET, HEAD").to_bytes()
    if not _may_be_asked_as(_host_of(lines), bound_host):
        detail = "this server is only for its own machine: ask it as localhost, or by the address that it is bound to"
        return problem(HTTPStatus.MISDIRECTED_REQUEST, detail).to_bytes(with_body=method == "GET")
    page = answer(target.partition("?")[0]) or problem(HTTPStatus.NOT_FOUND, "there are /metrics, /healthz, /readyz")
    return page.to_bytes(with_body=method == "GET")


def _may_be_asked_as(host: str, bound_host: str) -> bool:
    """A server that is bound to a loopback address answers to no other name, for any page that its user looks at can
    point a name of its own there. One that is bound elsewhere has whatever names its network gives it."""
    return not host or not is_loopback(bound_host) or is_loopback(host)


def _host_of(lines: list[str]) -> str:
    """Without its port; empty where there is none."""
    for line in lines:
        name, _, value = line.partition(":")
        if name.lower() == "host":
            host = value.strip().lower()
            return host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]
    return ""
