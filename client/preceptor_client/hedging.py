"""Asks a second replica what the first has not answered for a while: the first answer wins, the other is cancelled.

Dean and Barroso, "The Tail at Scale", CACM 2013. Bounded to a share of the calls, so that it cannot double an overload.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

from preceptor_client.errors import TeacherUnavailableError

HEDGED_SHARE = 0.1
"""Of the calls, at most, that are asked twice."""
MAX_SAVED_HEDGES = 10.0
"""Calls that are answered in time save up for later ones, but no more than this."""

ResultT = TypeVar("ResultT")


class HedgeBudget:
    """How long to wait before a call is asked twice, and whether it may be."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._saved = 0.0

    def earn(self) -> None:
        """A call begins."""
        self._saved = min(MAX_SAVED_HEDGES, self._saved + HEDGED_SHARE)

    def spend(self) -> bool:
        """Whether a call may be asked twice; if so, it counts as that."""
        # 0.1, ten times, adds up to less than 1.
        if self._saved < 1.0 - 1e-9:
            return False
        self._saved -= 1.0
        return True


async def race(
    ask_first: Callable[[], Coroutine[Any, Any, ResultT]],  # Any: a coroutine's unused channels
    ask_second: Callable[[], Coroutine[Any, Any, ResultT]],
    *,
    seconds: float,
    may_ask_second: Callable[[], bool],
) -> ResultT:
    """The first answer, which any error but TeacherUnavailableError is too. Where neither answers, raises that of the
    one asked last."""
    first = asyncio.create_task(ask_first())
    tasks = [first]
    try:
        await asyncio.wait(tasks, timeout=seconds)
        if not first.done() and may_ask_second():
            tasks.append(asyncio.create_task(ask_second()))
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            if all(_is_unavailable(task) for task in tasks if task.done()):
                await asyncio.wait(tasks)
            for task in tasks:
                if task.done() and not _is_unavailable(task):
                    return task.result()
        return await tasks[-1]
    finally:
        for task in tasks:
            task.cancel()
        await _all_ended(tasks)


def _is_unavailable(task: asyncio.Task[ResultT]) -> bool:
    return not task.cancelled() and isinstance(task.exception(), TeacherUnavailableError)


async def _all_ended(tasks: list[asyncio.Task[ResultT]]) -> None:
    ended: Awaitable[list[ResultT | BaseException]] = asyncio.gather(*tasks, return_exceptions=True)
    await ended
