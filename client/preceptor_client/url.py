"""Checks the URL of a server's HTTP side. Knows nothing of what is asked there."""

from __future__ import annotations

from urllib.parse import SplitResult, urlsplit


def checked_url(url: str) -> str:
    """`url` without slashes at its end. Raises ValueError unless it is http:// or https://, a host, and at most a port
    and a path; so it can neither run as a script nor carry a password where it is shown."""
    try:
        parts = urlsplit(url)
        is_url = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError as error:  # a port that is none, a bracket that does not close
        raise ValueError(f"{url!r} is no URL: {error}") from error
    if not is_url or not url.isprintable() or " " in url:
        raise ValueError(f"{url!r} is no URL: write http://HOST:PORT, such as 'http://127.0.0.1:8080'")
    if surplus := _surplus(url, parts):
        raise ValueError(f"{url!r} has {surplus}: write the address alone, such as 'http://127.0.0.1:8080'")
    return url.rstrip("/")


def _surplus(url: str, parts: SplitResult) -> str:
    if "@" in parts.netloc:
        return "a name or a password"
    if "?" in url or "#" in url:
        return "a '?' or a '#'"
    return ""
