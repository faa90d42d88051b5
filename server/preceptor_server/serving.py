"""One group from its message to its answer, the same for every transport. Observers are told what became of it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from preceptor.v1 import teacher_pb2 as pb

from preceptor_server.decoding import decode_off_loop
from preceptor_server.encoding import encode_score_response
from preceptor_server.hosted import HostedTeacher
from preceptor_server.scoring import score_call
from preceptor_server.status import reason_of

OK = "ok"
CANCELLED = "CANCELLED"
"""The outcome of a group that nobody waited for any more."""

Transport = Literal["grpc", "http"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """Who asks, and by which way."""

    name: str
    """For fairness: groups of one name share one turn."""
    transport: Transport
    weight: float = 1.0
    """What its tokens weigh in the queue, in (0, 1]."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Notes:
    """What an answer says beside the scores, of things that the wire does not carry."""

    is_next: bool = False
    """The only response is one token that nobody wrote: its row says what may follow the prompt."""
    student_logprobs: tuple[tuple[float, ...] | None, ...] = ()
    """Of each response, one per token; as the caller sent them."""


NO_NOTES = Notes()


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of a group."""

    caller: Caller
    request: pb.ScoreRequest
    response: pb.ScoreResponse | None
    """None where it failed."""
    notes: Notes
    reason: str
    """OK, or why it failed."""
    total_seconds: float

    @property
    def num_positions(self) -> int:
        """Scored ones."""
        scores = self.response.responses if self.response is not None else ()
        return sum(len(one.log_tail_mass) // 4 for one in scores)


class Observer(Protocol):
    """Whoever counts, or keeps, what is asked. It is called on the way of every request, so it must be quick."""

    def began(self, caller: Caller) -> None: ...

    def ended(self, outcome: Outcome) -> None:
        """Called once for each `began`."""


class ScoreService:
    """Decodes, scores, encodes."""

    def __init__(self, teacher: HostedTeacher, *, observers: Sequence[Observer] = ()) -> None:
        self.teacher = teacher
        self._observers = tuple(observers)

    async def score(
        self, request: pb.ScoreRequest, *, caller: Caller, timeout_seconds: float | None, notes: Notes = NO_NOTES
    ) -> pb.ScoreResponse:
        """Raises what decoding and scoring raise."""
        started = time.monotonic()
        for observer in self._observers:
            observer.began(caller)
        response, reason = None, CANCELLED
        try:
            response = await self._answer(request, caller=caller, timeout_seconds=timeout_seconds, started=started)
            reason = OK
        except Exception as error:
            reason = reason_of(error)
            raise
        finally:
            outcome = Outcome(
                caller=caller,
                request=request,
                response=response,
                notes=notes,
                reason=reason,
                total_seconds=time.monotonic() - started,
            )
            for observer in self._observers:
                observer.ended(outcome)
        return response

    async def _answer(
        self, request: pb.ScoreRequest, *, caller: Caller, timeout_seconds: float | None, started: float
    ) -> pb.ScoreResponse:
        call = await decode_off_loop(request, self.teacher)
        decode_ms = (time.monotonic() - started) * 1000
        scored = await score_call(
            call, self.teacher, caller=caller.name, timeout_seconds=timeout_seconds, weight=caller.weight
        )
        total_ms = (time.monotonic() - started) * 1000
        return encode_score_response(call, scored, self.teacher, decode_ms=decode_ms, total_ms=total_ms)
