"""Runs work on the event loop where it is small, else in a thread, so that no message keeps others waiting."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

from preceptor_server.edges.grpc.trimming import trim_after

ArgumentT = TypeVar("ArgumentT")
ResultT = TypeVar("ResultT")

SMALL_BYTES = 64 * 1024
"""Copying and parsing so many takes about as long as handing them to a thread."""


async def off_loop(work: Callable[[ArgumentT], ResultT], argument: ArgumentT, *, num_bytes: int) -> ResultT:
    """What `work` returns or raises; `num_bytes` says how much it has to look at."""
    if num_bytes <= SMALL_BYTES:
        return work(argument)
    return await asyncio.to_thread(_with_room, work, argument, num_bytes)


def _with_room(work: Callable[[ArgumentT], ResultT], argument: ArgumentT, num_bytes: int) -> ResultT:
    """What was done before may have left as much as this needs."""
    trim_after(num_bytes)
    return work(argument)
