"""Scores groups for a client: a bounded number at once, from the cache what it has, traced. Knows no connection."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import AsyncExitStack

from preceptor_client.affinity import prefix_of
from preceptor_client.cached_scoring import CachedScoring, Place
from preceptor_client.errors import TeacherUnavailableError
from preceptor_client.gate import Gate
from preceptor_client.replica import Replica
from preceptor_client.replicas import Replicas
from preceptor_client.request import GroupRequest
from preceptor_client.tracing import score_span
from preceptor_client.types import GroupScores

_MOMENT_SECONDS = 0.05


class Scoring:
    """The scores of one client, from inside one event loop."""

    def __init__(self, replicas: Callable[[], Replicas], *, max_calls: int, cached: CachedScoring | None) -> None:
        """`max_calls` at once; the others wait, first come, first served, and are not even encoded meanwhile."""
        self._replicas = replicas
        # Bytes are bounded where they are known: at each connection.
        self._gate = Gate(max_calls=max_calls, max_bytes=1)
        self._cached = cached

    async def score(self, group: GroupRequest, *, timeout_seconds: float) -> GroupScores:
        """The scores, verified. Raises PreceptorError."""
        began = time.monotonic()
        with score_span(group) as span:
            async with AsyncExitStack() as stack:
                try:
                    async with asyncio.timeout(timeout_seconds):
                        await stack.enter_async_context(self._gate.slot())
                except TimeoutError as error:
                    raise self._had_no_turn(timeout_seconds) from error
                place: Place | None = None
                if self._cached is not None:
                    place, found = await self._cached.find(group, timeout_seconds=_rest(timeout_seconds, began))
                    if found is not None:
                        span.answered(found, is_cached=True)
                        return found
                scores = await self._ask(group, place=place, timeout_seconds=_rest(timeout_seconds, began))
                span.answered(scores, is_cached=False)
                return scores

    async def _ask(self, group: GroupRequest, *, place: Place | None, timeout_seconds: float) -> GroupScores:
        async def ask(replica: Replica, seconds: float) -> tuple[GroupScores, list[bytes]]:
            # With the scores that are taken: another replica may answer at the same moment, by other weights.
            answer: list[bytes] = []
            keep = None if place is None else answer.append
            return await replica.score(group, timeout_seconds=seconds, keep=keep), answer

        scores, answer = await self._replicas().ask(
            ask, prefix=prefix_of(group), timeout_seconds=timeout_seconds, may_hedge=True
        )
        if self._cached is not None and place is not None:
            await self._cached.keep(place, answer[0], scores)
        return scores

    def _had_no_turn(self, seconds: float) -> TeacherUnavailableError:
        return TeacherUnavailableError(
            f"teacher {', '.join(self._replicas().addresses)} was not asked: {self._gate.num_calls} calls of this "
            f"client were under way for {seconds:g} s (max_concurrent_calls): submit less at once, or wait longer",
            code="DEADLINE_EXCEEDED",
        )


def _rest(timeout_seconds: float, began: float) -> float:
    """What is left of it. All, where next to nothing was used: an error then names the caller's own number."""
    used = time.monotonic() - began
    return timeout_seconds if used < _MOMENT_SECONDS else max(0.0, timeout_seconds - used)
