"""Opens a server's HTTP side for a command, or says what to install. Imports httpx when it is called, not before."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from preceptor_client.access import AccessOptions, find_access
from preceptor_client.retry import RetryEvent

if TYPE_CHECKING:
    from preceptor_client.http.connection import HttpTeacher


def open_http(
    url: str, *, access: AccessOptions, timeout_seconds: float, on_retry: Callable[[RetryEvent], None] | None = None
) -> HttpTeacher:
    """Raises ImportError where the package httpx is missing, ValueError where a key or a certificate cannot be used."""
    try:
        from preceptor_client.http.connection import HttpTeacher
    except ModuleNotFoundError as error:
        if error.name != "httpx":
            raise
        raise ImportError("the package httpx is missing: run `pip install 'preceptor[http]'`") from error
    return HttpTeacher(url, timeout_seconds=timeout_seconds, on_retry=on_retry, access=find_access(**access))
