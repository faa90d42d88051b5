"""Gives what large messages have left behind back to the kernel.

glibc keeps freed memory for the next allocations, in an arena for each of its threads: after a few large messages that
is as much as several of them. Trimming takes some milliseconds, a small part of what a large message takes.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable

_LARGE_BYTES = 4 << 20
"""Smaller messages leave too little to look for."""

_malloc_trim: Callable[[int], int] | None = getattr(ctypes.CDLL(None), "malloc_trim", None)
"""None where the C library has none: musl's and Apple's."""


def trim_after(num_bytes: int) -> None:
    """Where so many bytes have been worked with. For a thread: Python goes on meanwhile."""
    if num_bytes >= _LARGE_BYTES and _malloc_trim is not None:
        _malloc_trim(0)
