"""Who asks over HTTP. The one place that names a caller: keys and quotas will be looked up here."""

from __future__ import annotations

from starlette.requests import Request

from preceptor_server.serving import Caller


def caller_of(request: Request) -> Caller:
    """One caller per address, and of low weight."""
    address = request.client.host if request.client else "unknown"
    return Caller(name=f"http:{address}", transport="http", weight=request.app.state.http.config.share)
