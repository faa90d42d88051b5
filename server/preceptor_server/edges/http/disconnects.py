"""Work that is done only while somebody waits for it: a caller that goes away takes it along."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from starlette.requests import Request

ResultT = TypeVar("ResultT")


class CallerGoneError(Exception):
    """Nobody waits for the answer."""


async def while_connected(request: Request, work: Coroutine[Any, Any, ResultT]) -> ResultT:
    """What `work` returns or raises. Raises CallerGoneError, with the work cancelled, when the caller is gone first.
    The request's body must have been read."""
    working = asyncio.create_task(work)
    watching = asyncio.create_task(_gone(request))
    try:
        await asyncio.wait({working, watching}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise CallerGoneError
    finally:
        working.cancel()
        watching.cancel()
        await asyncio.gather(working, watching, return_exceptions=True)


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
