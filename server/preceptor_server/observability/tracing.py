"""Traces of calls and batches. Without a collector nothing is traced, nothing imported, and a call costs nothing.

    preceptor.score   one call, below the caller's span (traceparent)
    preceptor.queue   its wait for a batch, below it; linked to the batch
    preceptor.batch   one forward, a trace of its own, linked to all its calls

Spans carry numbers and names, no text, ids of tokens or keys. OpenTelemetry itself is in otlp.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Protocol

from preceptor_server.observability.observer import Asker, BatchDone, Outcome


@dataclass(frozen=True, slots=True, kw_only=True)
class SpanIds:
    """Of a span, in hexadecimal."""

    trace_id: str
    span_id: str


class CallSpan(Protocol):
    """One call, until the block around it ends."""

    def ended(self, outcome: Outcome) -> None:
        """What became of it; once, before the block ends."""


class QueueSpan(Protocol):
    """One group's wait for a batch."""

    def dropped(self, reason: str) -> None:
        """It left the queue without a batch. After a batch has begun, this does nothing."""


class BatchSpan(Protocol):
    """One forward."""

    def done(self, done: BatchDone) -> None:
        """It ended."""


class Tracing(Protocol):
    """What the parts on a call's way tell. Called in the event loop."""

    def score(
        self, *, caller: Asker, teacher: str, traceparent: str = "", tracestate: str = ""
    ) -> AbstractContextManager[CallSpan]:
        """A call, for as long as the block lasts. The headers are the caller's, as they came."""

    def queued(self) -> QueueSpan:
        """A group enters a queue, in the context of its call."""

    def batch(self, waits: Iterable[QueueSpan], *, teacher: str) -> BatchSpan:
        """These groups' waits end, and their forward begins."""

    def close(self, seconds: float) -> None:
        """Sends what is left, within so much time. Blocks."""


_ids: ContextVar[SpanIds | None] = ContextVar("preceptor_span", default=None)


def current_ids() -> SpanIds | None:
    """Of the call at hand, where it is traced."""
    return _ids.get()


@contextmanager
def showing(ids: SpanIds | None) -> Iterator[None]:
    """These are the `current_ids` within."""
    token = _ids.set(ids)
    try:
        yield
    finally:
        _ids.reset(token)


class _Nothing:
    """A span of each kind that nobody sees."""

    __slots__ = ()

    def __enter__(self) -> _Nothing:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def ended(self, outcome: Outcome) -> None: ...
    def dropped(self, reason: str) -> None: ...
    def done(self, done: BatchDone) -> None: ...


_NOTHING = _Nothing()


class NoTracing:
    """Traces nothing."""

    def score(
        self, *, caller: Asker, teacher: str, traceparent: str = "", tracestate: str = ""
    ) -> AbstractContextManager[CallSpan]:
        return _NOTHING

    def queued(self) -> QueueSpan:
        return _NOTHING

    def batch(self, waits: Iterable[QueueSpan], *, teacher: str) -> BatchSpan:
        return _NOTHING

    def close(self, seconds: float) -> None: ...


NO_TRACING = NoTracing()
