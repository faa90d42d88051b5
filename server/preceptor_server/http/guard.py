"""Stands before everything: a Host that this server has, and headers that keep a browser from harm. Plain ASGI."""

from __future__ import annotations

from collections.abc import Sequence
from http import HTTPStatus

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from preceptor_server.bind_address import as_ip, is_loopback
from preceptor_server.http.problems import Problem


def content_security_policy(compare_with: Sequence[str]) -> str:
    """Nothing but this server's own files, without inline code; requests to it, and to the teachers to compare with."""
    return "; ".join(
        (
            "default-src 'none'",
            "script-src 'self'",
            "style-src 'self'",
            "img-src 'self' data:",
            " ".join(("connect-src 'self'", *compare_with)),
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
        )
    )


class Guard:
    """Wraps an ASGI application."""

    def __init__(
        self, app: ASGIApp, *, bound_host: str, allowed_hosts: Sequence[str] = (), compare_with: Sequence[str] = ()
    ) -> None:
        self._app = app
        self._bound_host = bound_host.lower()
        self._allowed_hosts = frozenset(host.strip("[]") for host in allowed_hosts)
        self._headers = {
            "Content-Security-Policy": content_security_policy(compare_with),
            "X-Content-Type-Options": "nosniff",
            "Referrer-Policy": "no-referrer",
            "Cross-Origin-Resource-Policy": "same-origin",
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers.update(self._headers)
                headers.setdefault("Cache-Control", "no-store")
            await send(message)

        host = Headers(scope=scope).get("host", "")
        if self.is_ours(host):
            await self._app(scope, receive, send_guarded)
            return
        problem = Problem(
            status=HTTPStatus.MISDIRECTED_REQUEST,
            reason="UNKNOWN_HOST",
            detail=f"this server is not {host[:128]!r}: ask it by its address, or name that in http.allowed_hosts",
        )
        await problem.to_response()(scope, receive, send_guarded)

    def is_ours(self, header: str) -> bool:
        """Whether a Host header names this server. The port does not matter, for a tunnel has another; a name does,
        since any page can point a name of its own at this address."""
        host = _without_port(header.lower())
        if host in self._allowed_hosts or host == self._bound_host:
            return True
        bound = as_ip(self._bound_host)
        if bound is not None and bound.is_unspecified:
            return host == "localhost" or as_ip(host) is not None
        return is_loopback(self._bound_host) and is_loopback(host)


def _without_port(header: str) -> str:
    if header.startswith("["):
        return header[1:].partition("]")[0]
    return header.partition(":")[0]
