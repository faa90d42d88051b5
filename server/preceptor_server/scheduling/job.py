"""One group from its arrival to its answer: who asked for it, how long they wait, and what they are told."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from preceptor_server.callers import Caller
from preceptor_server.context_costs import FLAT, ContextCosts
from preceptor_server.engines.base import Division
from preceptor_server.errors import DeadlinePassedError, UnknownTeacherError
from preceptor_server.observability.tracing import NO_TRACING, QueueSpan
from preceptor_server.scheduling.costs import bytes_of, cost_beside_tokens
from preceptor_server.types import EngineInfo, GroupColumns, ScoredGroup, ScoreGroup

NO_WAIT = NO_TRACING.queued()


@dataclass(eq=False, slots=True, kw_only=True)
class Job:
    """A group that somebody waits for, in the queue or in flight. Times are those of the event loop's clock."""

    group: ScoreGroup
    caller: Caller
    deadline: float | None
    enqueued: float
    future: asyncio.Future[ScoredGroup]
    context_costs: ContextCosts = FLAT
    """Of the engine."""
    wait: QueueSpan = NO_WAIT
    """Its time in the queue, as a trace shows it."""
    order: int = 0
    """Of arrival; the queue sets it."""
    num_overtaken: int = 0
    """Batches that were filled with entries behind it, since it did not fit."""
    started: float | None = None
    """When the engine was first given it, or a slice of it; None while it waits."""
    revision: str = ""
    """Of the weights that score it; known once it has started."""
    division: Division | None = None
    """Open while it is computed in slices."""
    slice_cost: float = 0.0
    """Of the forward of such a slice, at most; 0 until it is first divided."""
    forward_seconds: float = 0.0
    """Of its slices so far."""
    num_tokens: int = field(init=False)
    num_bytes: int = field(init=False)
    forward_cost: float = field(init=False)
    """By itself, of all of its tokens."""
    cost: float = field(init=False)
    """The same, with supports and candidates; see `costs.py`."""

    def __post_init__(self) -> None:
        self.num_tokens = self.group.num_tokens
        self.num_bytes = bytes_of(self.group)
        self.forward_cost = self.group.forward_cost(self.context_costs)
        self.cost = self.forward_cost + cost_beside_tokens(self.group)

    def cost_beyond(self, num_shared: int) -> float:
        """Where so many tokens of its prompt need not be computed."""
        return self.cost - self.context_costs.of_span(0, num_shared)

    @property
    def is_exclusive(self) -> bool:
        """Whether it shares the engine with no other group."""
        return self.group.batch_invariant

    @property
    def is_awaited(self) -> bool:
        """Whether somebody still waits for the answer."""
        return not self.future.done()

    def expire_if_late(self, now: float) -> None:
        """Tells a caller whose deadline has passed, and where that was."""
        if self.deadline is not None and now >= self.deadline:
            where = "in the queue" if self.started is None else "while it was scored"
            self.fail(DeadlinePassedError(f"the deadline passed after {now - self.enqueued:.1f} s {where}"))

    def fail_without_adapter(self, info: EngineInfo) -> None:
        """Tells a caller whose adapter was taken away while the group waited."""
        adapter = self.group.adapter
        if adapter and adapter not in info.adapters:
            gone = f"{adapter!r} was taken away while the group waited"
            self.fail(UnknownTeacherError("adapter", gone, reason="UNKNOWN_ADAPTER"))

    def fail(self, error: Exception) -> None:
        if not self.future.done():
            self.future.set_exception(error)

    def answer(self, columns: GroupColumns, *, seconds: float) -> None:
        """`seconds`: of the forward, or of the last slice."""
        assert self.started is not None, "only what was started is answered"
        self.forward_seconds += seconds
        if not self.future.done():
            queue_ms = (self.started - self.enqueued) * 1000
            self.future.set_result(
                ScoredGroup(
                    columns=columns,
                    revision=self.revision,
                    queue_ms=queue_ms,
                    forward_ms=self.forward_seconds * 1000,
                )
            )
