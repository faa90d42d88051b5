"""Quotes a bad value or a bad line for a message: short, on one line, printable on any terminal."""

from __future__ import annotations

import reprlib

MAX_EXCERPT = 60
"""Characters of a quoted text, and of any other quoted value."""
MAX_FOREIGN = 400
"""Characters of another program's message."""
_REACH = 20
"""Bytes or characters quoted on each side of the place at fault."""

_quoting = reprlib.Repr()
_quoting.maxstring = _quoting.maxother = _quoting.maxlong = MAX_EXCERPT
_quoting.maxlevel = 2


def excerpt(value: object) -> str:
    """The value as Python writes it, cut."""
    return printable(_quoting.repr(value))


def excerpt_around(data: str | bytes, position: int) -> str:
    """What stands around a position, as Python writes it."""
    return printable(repr(data[max(0, position - _REACH) : position + _REACH]))


def message_of(error: BaseException) -> str:
    """What a foreign program says is wrong: its error's kind and words, cut."""
    text = f"{type(error).__name__}: {error}"
    return printable(text if len(text) <= MAX_FOREIGN else f"{text[:MAX_FOREIGN]} ...")


def printable(text: str) -> str:
    """The text with every half of a character escaped: what it is printed to, or written to, is UTF-8."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
