"""One group from its arrival to its answer: who asked for it, how long they wait, and what they are told."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field

from preceptor_server.errors import DeadlinePassedError
from preceptor_server.types import GroupColumns, ScoredGroup, ScoreGroup


@dataclass(eq=False, slots=True, kw_only=True)
class Job:
    """A group that somebody waits for, in the queue or in flight. Times are those of time.monotonic()."""

    group: ScoreGroup
    caller: str
    deadline: float | None
    enqueued: float
    future: asyncio.Future[ScoredGroup]
    weight: float = 1.0
    """Its tokens count this much less in the queue than others': in (0, 1]."""
    started: float | None = None
    """When the engine was given it; None while it waits."""
    revision: str = ""
    """Of the weights that score it; known once it has started."""
    num_tokens: int = field(init=False)

    def __post_init__(self) -> None:
        self.num_tokens = self.group.num_tokens

    @property
    def rides_alone(self) -> bool:
        return self.group.batch_invariant

    def is_awaited(self) -> bool:
        """Whether somebody still waits; tells a caller whose deadline has passed."""
        if self.deadline is not None and time.monotonic() >= self.deadline:
            self.expire()
        return not self.future.done()

    def expire(self) -> None:
        """Tells the caller that the deadline has passed, and where."""
        waited = time.monotonic() - self.enqueued
        where = "in the queue" if self.started is None else "while it was scored"
        self.fail(DeadlinePassedError(f"the deadline passed after {waited:.1f} s {where}"))

    def fail(self, error: Exception) -> None:
        if not self.future.done():
            self.future.set_exception(error)

    def answer(self, columns: GroupColumns, *, forward_seconds: float) -> None:
        assert self.started is not None, "only what was started is answered"
        if not self.future.done():
            queue_ms = (self.started - self.enqueued) * 1000
            self.future.set_result(
                ScoredGroup(
                    columns=columns, revision=self.revision, queue_ms=queue_ms, forward_ms=forward_seconds * 1000
                )
            )
