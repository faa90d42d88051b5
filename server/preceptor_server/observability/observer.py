"""What is told of calls and batches, and to whom. Frozen events without text, ids or keys; knows no gRPC and no HTTP.

Observers are told in the event loop, on the way of every call: they must be quick, and must not raise. One that raises
all the same is counted and logged once, and the call goes on.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from types import MappingProxyType
from typing import Generic, Literal, Protocol, TypeVar

logger = logging.getLogger(__name__)

OK = "ok"
CANCELLED = "CANCELLED"
"""The outcome of a call that nobody waited for any more."""

Transport = Literal["grpc", "http"]


class Party(Protocol):
    """A tenant, as far as observers know it."""

    @property
    def name(self) -> str:
        """Bound to its key; of an anonymous one "peer:ADDRESS"."""


class Asker(Protocol):
    """A caller, as far as observers know it."""

    @property
    def tenant(self) -> Party: ...

    @property
    def name(self) -> str:
        """What it calls itself: free text, and therefore never a label."""

    @property
    def transport(self) -> Transport: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of a call that reached scoring."""

    caller: Asker
    teacher: str
    """As the call named it, whether or not there is such a teacher."""
    reason: str
    """OK, or the reason of its error."""
    total_seconds: float
    """From its arrival until its answer was built."""
    queue_seconds: float | None = None
    """How long it waited for a batch; None where it never did."""
    num_positions: int = 0
    """Scored ones; 0 where it failed."""
    num_prompt_tokens: int = 0
    num_response_tokens: int = 0
    request_bytes: int = 0
    answer_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """A call that never reached scoring: no key, malformed, too large."""

    tenant: str
    """Empty where nobody could be told apart."""
    transport: Transport
    method: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchDone:
    """One forward: of a batch, of a slice of a large group, or of a group that the engine batches by itself."""

    num_groups: int
    num_tokens: int
    """Of the groups, or of the slice, each prompt counted for each group."""
    num_reused_tokens: int
    """Of these, what was not computed: prefixes that groups share, or that the engine still had."""
    max_tokens: int
    """Computed tokens of a full batch; 0 where the engine makes its own batches."""
    seconds: float
    reason: str
    """OK, or the reason of its error."""
    computed_by_tenant: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))
    """Tokens computed, by the tenant's name; they add up to num_tokens - num_reused_tokens."""


OutcomeT = TypeVar("OutcomeT", bound=Outcome, contravariant=True)
"""An Outcome, or one that holds more, for those who want it."""


class Observer(Protocol[OutcomeT]):
    """Is told of calls."""

    def began(self, caller: Asker) -> None: ...

    def ended(self, outcome: OutcomeT) -> None:
        """Once for each `began`."""

    def refused(self, refusal: Refusal) -> None:
        """Of a call of which there was no `began`."""


class BatchObserver(Protocol):
    """Is told of one teacher's batches."""

    def batch_done(self, done: BatchDone) -> None: ...


class Observers(Generic[OutcomeT]):
    """Tells several observers, each whatever the others do. Itself an Observer."""

    def __init__(self, observers: Sequence[Observer[OutcomeT]]) -> None:
        self._observers = tuple(observers)
        self._failures: Counter[str] = Counter()

    @property
    def failures(self) -> Mapping[str, int]:
        """How often an observer raised, by its class."""
        return self._failures

    def began(self, caller: Asker) -> None:
        for observer in self._observers:
            self._tell(observer, "began", partial(observer.began, caller))

    def ended(self, outcome: OutcomeT) -> None:
        for observer in self._observers:
            self._tell(observer, "ended", partial(observer.ended, outcome))

    def refused(self, refusal: Refusal) -> None:
        for observer in self._observers:
            self._tell(observer, "refused", partial(observer.refused, refusal))

    def batches(self, observers: Sequence[BatchObserver]) -> BatchObserver:
        """The same for observers of one teacher's batches; their failures are counted here too."""
        return _Batches(tuple(observers), self._tell)

    def _tell(self, observer: object, what: str, call: Callable[[], None]) -> None:
        try:
            call()
        except Exception:  # whatever an observer does wrong, the call that it observes goes on
            name = type(observer).__name__
            self._failures[name] += 1
            if self._failures[name] == 1:
                logger.exception("observer failed observer=%s at=%s; further failures are only counted", name, what)


class _Batches:
    """Tells several observers of batches."""

    def __init__(
        self, observers: tuple[BatchObserver, ...], tell: Callable[[object, str, Callable[[], None]], None]
    ) -> None:
        self._observers = observers
        self._tell = tell

    def batch_done(self, done: BatchDone) -> None:
        for observer in self._observers:
            self._tell(observer, "batch_done", partial(observer.batch_done, done))
