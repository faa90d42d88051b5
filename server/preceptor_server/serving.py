"""Scores one group, the same for every transport. Observers are told what became of it."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

from preceptor_server.callers import Caller
from preceptor_server.calls import ScoreCall, ScoredCall
from preceptor_server.errors import reason_of
from preceptor_server.scoring import Charged, score_call
from preceptor_server.teachers import Teachers
from preceptor_server.tenants.quotas import Quotas
from preceptor_server.tenants.tenant import Tenant

OK = "ok"
CANCELLED = "CANCELLED"
"""The outcome of a group that nobody waited for any more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Notes:
    """What an edge knows of a call that the core does not need."""

    is_next: bool = False
    """The only response is one token that nobody wrote: its row says what may follow the prompt."""
    student_logprobs: tuple[tuple[float, ...] | None, ...] = ()
    """Of each response, one per token; as the caller sent them."""


NO_NOTES = Notes()


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of a group."""

    caller: Caller
    teacher: str
    """As asked for; the name of the one that answered where there is an answer."""
    call: ScoreCall
    scored: ScoredCall | None
    """None where it failed."""
    notes: Notes
    reason: str
    """OK, or why it failed."""
    total_seconds: float

    @property
    def num_positions(self) -> int:
        """Scored ones."""
        return self.scored.num_positions if self.scored else 0


class Observer(Protocol):
    """Counts, or keeps, what is asked. It is called on the way of every request, so it must be quick."""

    def began(self, caller: Caller) -> None: ...

    def ended(self, outcome: Outcome) -> None:
        """Called once for each `began`."""


class ScoreService:
    """Finds the teacher, scores, and tells the observers."""

    def __init__(self, teachers: Teachers, *, quotas: Quotas | None = None, observers: Sequence[Observer] = ()) -> None:
        self.teachers = teachers
        self._quotas = quotas or Quotas()
        self._observers = tuple(observers)

    async def score(
        self, call: ScoreCall, caller: Caller, *, timeout_seconds: float | None, notes: Notes = NO_NOTES
    ) -> ScoredCall:
        """Raises what finding the teacher and scoring raise, and QuotaExceededError."""
        started = time.monotonic()
        for observer in self._observers:
            observer.began(caller)
        scored, reason, name = None, CANCELLED, call.teacher
        try:
            with (
                self.teachers.use(call.teacher, tenant=caller.tenant) as teacher,
                self._quotas.call(caller.tenant, num_bytes=call.num_bytes),
            ):
                name = teacher.name
                scored = await score_call(
                    call, teacher, caller=caller, timeout_seconds=timeout_seconds, charged=self._charged(caller.tenant)
                )
            reason = OK
        except Exception as error:
            reason = reason_of(error)
            raise
        finally:
            outcome = Outcome(
                caller=caller,
                teacher=name,
                call=call,
                scored=scored,
                notes=notes,
                reason=reason,
                total_seconds=time.monotonic() - started,
            )
            for observer in self._observers:
                observer.ended(outcome)
        return scored

    def _charged(self, tenant: Tenant) -> Charged:
        @contextmanager
        def charged(num_tokens: int) -> Iterator[None]:
            self._quotas.charge(tenant, num_tokens)
            try:
                yield
            except BaseException:
                self._quotas.refund(tenant, num_tokens)
                raise

        return charged
