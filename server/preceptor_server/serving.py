"""Scores one group, the same for every transport. Observers are told what became of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from preceptor_server.callers import Caller
from preceptor_server.calls import ScoreCall, ScoredCall
from preceptor_server.errors import ServerError, reason_of
from preceptor_server.observability.observer import CANCELLED, OK, Observers, Outcome
from preceptor_server.observability.tracing import NO_TRACING, Tracing
from preceptor_server.scoring import Charged, score_call
from preceptor_server.teachers import Teachers
from preceptor_server.tenants.quotas import Quotas
from preceptor_server.tenants.tenant import Tenant


@dataclass(frozen=True, slots=True, kw_only=True)
class Notes:
    """What an edge knows of a call that the core does not need."""

    is_next: bool = False
    """The only response is one token that nobody wrote: its row says what may follow the prompt."""
    student_logprobs: tuple[tuple[float, ...] | None, ...] = ()
    """Of each response, one per token; as the caller sent them."""
    traceparent: str = ""
    """The caller's span, as W3C's trace context writes it. Empty = none."""
    tracestate: str = ""


NO_NOTES = Notes()


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedOutcome(Outcome):
    """What became of a group, with all that it was about: for observers that keep it."""

    call: ScoreCall
    scored: ScoredCall | None
    """None where it failed."""
    notes: Notes


class ScoreService:
    """Finds the teacher, scores, and tells the observers."""

    def __init__(
        self,
        teachers: Teachers,
        *,
        quotas: Quotas | None = None,
        observers: Observers[ServedOutcome] | None = None,
        tracing: Tracing = NO_TRACING,
    ) -> None:
        self.teachers = teachers
        self._quotas = quotas or Quotas()
        self._observers: Observers[ServedOutcome] = observers or Observers(())
        self._tracing = tracing

    async def score(
        self,
        call: ScoreCall,
        caller: Caller,
        *,
        timeout_seconds: float | None,
        notes: Notes = NO_NOTES,
        arrived: Callable[[], None] = lambda: None,
    ) -> ScoredCall:
        """Raises what finding the teacher and scoring raise, and QuotaExceededError. `arrived` is called when the
        scheduler is about to count the group among what waits."""
        started = time.monotonic()
        self._observers.began(caller)
        scored, reason, name = None, CANCELLED, call.teacher
        tracing = self._tracing.score(
            caller=caller, teacher=call.teacher, traceparent=notes.traceparent, tracestate=notes.tracestate
        )
        with tracing as span:
            try:
                with (
                    self.teachers.use(call.teacher, tenant=caller.tenant) as teacher,
                    self._quotas.call(caller.tenant, num_bytes=call.num_bytes),
                ):
                    name = teacher.name
                    charged = self._charged(caller.tenant, arrived)
                    scored = await score_call(
                        call, teacher, caller=caller, timeout_seconds=timeout_seconds, charged=charged
                    )
                reason = OK
            except Exception as error:
                reason = reason_of(error)
                if isinstance(error, ServerError):
                    error.is_outcome = True
                raise
            finally:
                outcome = _outcome(
                    call, scored, caller=caller, teacher=name, reason=reason, notes=notes, started=started
                )
                span.ended(outcome)
                self._observers.ended(outcome)
        return scored

    def _charged(self, tenant: Tenant, arrived: Callable[[], None]) -> Charged:
        @contextmanager
        def charged(num_tokens: int) -> Iterator[None]:
            self._quotas.charge(tenant, num_tokens)
            arrived()
            try:
                yield
            except BaseException:
                self._quotas.refund(tenant, num_tokens)
                raise

        return charged


def _outcome(
    call: ScoreCall,
    scored: ScoredCall | None,
    *,
    caller: Caller,
    teacher: str,
    reason: str,
    notes: Notes,
    started: float,
) -> ServedOutcome:
    return ServedOutcome(
        caller=caller,
        teacher=teacher,
        reason=reason,
        total_seconds=time.monotonic() - started,
        queue_seconds=scored.timings.queue_ms / 1000 if scored and scored.timings.forward_ms else None,
        num_positions=scored.num_positions if scored else 0,
        num_prompt_tokens=len(scored.prompt_ids_P) if scored else 0,
        num_response_tokens=sum(len(response.ids_T) for response in call.responses),
        request_bytes=call.num_bytes,
        answer_bytes=scored.num_bytes if scored else 0,
        call=call,
        scored=scored,
        notes=notes,
    )
