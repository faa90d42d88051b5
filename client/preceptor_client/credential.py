"""Holds an API key so that it cannot be shown by accident. Knows nothing of who is asked, or by which transport."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import NoReturn

_log = logging.getLogger(__name__)

MAX_KEY_BYTES = 4096
"""A larger file is no key: somebody named the wrong one."""

Stamp = tuple[int, int, int]
"""By which a change of a file is noticed: when it was written, its size, its inode."""


class Credential:
    """An API key, or the file that holds it. The text leaves through `header` alone: neither repr nor pickle has it."""

    __slots__ = ("_path", "_stamp", "_text", "source")

    def __init__(self, *, text: str | None = None, path: Path | None = None, source: str) -> None:
        """Either `text` or `path`; `source` says where the key came from, for messages. Raises ValueError, which does
        not repeat the key, where there is none or it cannot be one."""
        assert (text is None) != (path is None), "a key, or its file"
        self.source = source
        self._path = path
        self._stamp: Stamp | None = None
        if path is None:
            assert text is not None
            self._text = _checked(text, source=source)
        else:
            self._text, self._stamp = _read(path, source=source)

    def header(self) -> str:
        """What the metadata entry, or the HTTP header, `authorization` says. A key file that changed is read again."""
        if self._path is not None:
            self._follow(self._path)
        return f"Bearer {self._text}"

    def _follow(self, path: Path) -> None:
        try:
            if _stamp_of(path) == self._stamp:
                return
            self._text, self._stamp = _read(path, source=self.source)
        except (OSError, ValueError) as error:
            # A secret that is being replaced may be absent, or empty, for a moment.
            if self._stamp is not None:
                _log.warning("key file cannot be read, the key before it is used: %s", error)
            self._stamp = None
        else:
            _log.info("key file was read again: path=%s", path)

    def __repr__(self) -> str:
        return f"Credential(source={self.source!r})"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a Credential is not pickled: it would be written in plain text")


def _read(path: Path, *, source: str) -> tuple[str, Stamp]:
    try:
        stamp = _stamp_of(path)
        with path.open("rb") as file:
            data = file.read(MAX_KEY_BYTES + 1)
    except OSError as error:
        raise ValueError(
            f"{source}: {path} cannot be read ({error.strerror}): name a file that holds the key alone"
        ) from error
    if len(data) > MAX_KEY_BYTES:
        raise ValueError(f"{source}: {path} has more than {MAX_KEY_BYTES} bytes: name a file that holds the key alone")
    return _checked(data.decode("latin-1").strip("\r\n\t "), source=f"{source} ({path})"), stamp


def _stamp_of(path: Path) -> Stamp:
    status = os.stat(path)
    return status.st_mtime_ns, status.st_size, status.st_ino


def _checked(text: str, *, source: str) -> str:
    """Raises ValueError, which does not repeat it, on what cannot be sent."""
    if not text:
        raise ValueError(f"{source} is empty: it must hold the key, such as prk_ID_SECRET")
    if not all("!" <= character <= "~" for character in text):
        raise ValueError(
            f"{source} holds a space or a character that is not printable ASCII: it must be the key alone, in one "
            "line, as `preceptor-server keys new` printed it"
        )
    return text
