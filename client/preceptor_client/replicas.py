"""The servers that host one teacher: spreads calls over them, and goes on with the rest while one is away.

A call goes to the replica that its prompt prefers (`affinity`), and to the next in that order where it gets no answer,
or one that verification refuses. A replica is compared with the others (`same_teacher`) before it is first asked for
scores, and again on every new connection: what comes back may be another teacher. An only address is called without any
of this. Knows nothing of protobuf.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from preceptor_client.errors import CorruptAnswerError, ReplicasDifferError, TeacherUnavailableError
from preceptor_client.hedging import HedgeBudget, race
from preceptor_client.registrations import fingerprint_of
from preceptor_client.replica import Replica
from preceptor_client.replica_order import Member, order_of
from preceptor_client.request import RegistrationRequest
from preceptor_client.retry import RetryEvent, RetryPolicy
from preceptor_client.same_teacher import Difference, difference
from preceptor_client.types import Registration, ServerInfo

_log = logging.getLogger(__name__)

_FULL = "RESOURCE_EXHAUSTED"
_LATE = "DEADLINE_EXCEEDED"
_CORRUPT = "DATA_LOSS"

ResultT = TypeVar("ResultT")
Ask = Callable[[Replica, float], Awaitable[ResultT]]
"""Asks one replica, which has so many seconds for it."""


@dataclass(slots=True, kw_only=True)
class _Call:
    """One call of the library's user: its clock, and its attempts at any replica."""

    timeout_seconds: float
    started: float
    num_attempts: int = 0

    @property
    def elapsed(self) -> float:
        return time.monotonic() - self.started

    @property
    def remaining(self) -> float:
        return max(0.0, self.timeout_seconds - self.elapsed)


class _WrongAnswerError(TeacherUnavailableError):
    """One of several replicas gave an answer that may not be used: as good as none, while another may give one."""

    def __init__(self, address: str, error: CorruptAnswerError) -> None:
        super().__init__(f"teacher {address} answers wrongly: {error}", code=_CORRUPT)
        self.error = error


class _NobodyAnsweredError(Exception):
    """No replica that was asked gave an answer; what they said, and the last one."""

    def __init__(self, failures: Mapping[str, TeacherUnavailableError], *, num_asked: int) -> None:
        """`failures` by address, in the order in which they were asked."""
        super().__init__(*failures)
        self.address, self.failure = list(failures.items())[-1]
        wrong = [failure.error for failure in failures.values() if isinstance(failure, _WrongAnswerError)]
        self.wrong = wrong[0] if wrong else None
        self.is_settled = len(wrong) == num_asked
        """All of them answered wrongly: waiting does not help."""


class Replicas:
    """One teacher, on one server or on several. Unless there is only one, their connections are not patient."""

    def __init__(
        self,
        replicas: Sequence[Replica],
        *,
        retry: RetryPolicy,
        on_retry: Callable[[RetryEvent], None] | None,
        hedge_seconds: float | None = None,
    ) -> None:
        """What one of several has not answered after `hedge_seconds` is asked of the next too."""
        self._members = {replica.address: Member(replica) for replica in replicas}
        self._only = replicas[0] if len(replicas) == 1 else None
        self._retry = retry
        self._on_retry = on_retry
        self._hedges = None if hedge_seconds is None else HedgeBudget(hedge_seconds)
        self._model: tuple[str, ServerInfo] | None = None
        """The replica that the others are compared with, and what it said of itself."""

    async def info(self, *, include_tokenizer: bool, timeout_seconds: float) -> ServerInfo:
        """What the teacher's servers say of themselves, once all that answer were compared."""
        call = _Call(timeout_seconds=timeout_seconds, started=time.monotonic())
        if self._only is None:
            for member in self._members.values():
                member.is_compared = False
            await self._ask_all(_ask_nothing, call=call)
        return await self.ask(
            lambda replica, seconds: replica.info(include_tokenizer=include_tokenizer, timeout_seconds=seconds),
            prefix=b"",
            timeout_seconds=call.remaining,
        )

    async def register(self, request: RegistrationRequest, *, timeout_seconds: float) -> Registration:
        """Registers a tokenizer with all that answer; with the others when they say that they lack it."""
        call = _Call(timeout_seconds=timeout_seconds, started=time.monotonic())
        fingerprint = await fingerprint_of(request)
        answers = await self._ask_all(
            lambda replica, seconds: replica.register(request, fingerprint=fingerprint, timeout_seconds=seconds),
            call=call,
        )
        (address, first), *others = answers.items()
        for other, registration in others:
            if registration.tokenizer_id != first.tokenizer_id:
                found = Difference("tokenizer_id", first.tokenizer_id, registration.tokenizer_id)
                raise _differ(address, other, found)
        for member in self._members.values():
            if member.replica.address not in answers:
                member.replica.remember(request, fingerprint=fingerprint, registration=first)
        return first

    @property
    def addresses(self) -> list[str]:
        """host:port of each."""
        return list(self._members)

    @property
    def num_losses(self) -> int:
        """How often a connection to any of them was found lost: another server may stand behind the next one."""
        return sum(member.replica.num_losses for member in self._members.values())

    async def ask(
        self, ask: Ask[ResultT], *, prefix: bytes, timeout_seconds: float, may_hedge: bool = False
    ) -> ResultT:
        """The answer of the first replica that gives one, in the order that a prompt with this prefix prefers. With
        `may_hedge` two may be asked at once."""
        if self._only is not None:
            return await ask(self._only, timeout_seconds)
        call = _Call(timeout_seconds=timeout_seconds, started=time.monotonic())
        hedges = self._hedges if may_hedge else None
        if hedges is not None:
            hedges.earn()
        return await self._repeat(
            lambda: self._ask_in_turn(order_of(self._members, prefix=prefix), ask, call=call, hedges=hedges), call=call
        )

    async def change(self, ask: Ask[ResultT], *, timeout_seconds: float) -> ResultT:
        """For what changes the teacher: asks every replica, and each is to answer; the first one's answer. Where that
        fails at one the others are changed all the same, and no score is taken from those that differ. They are
        compared anew afterwards."""
        if self._only is not None:
            return await ask(self._only, timeout_seconds)
        call = _Call(timeout_seconds=timeout_seconds, started=time.monotonic())
        members = self._members.values()

        def ask_it(member: Member) -> Awaitable[ResultT]:
            return self._repeat(lambda: self._ask_in_turn([member], ask, call=call), call=call)

        results = await asyncio.gather(*(ask_it(member) for member in members), return_exceptions=True)
        self._model = None
        for member in members:
            member.is_compared = False
        answers: list[ResultT] = []
        for result in results:
            if isinstance(result, BaseException):
                raise result
            answers.append(result)
        return answers[0]

    async def close(self) -> None:
        """Cancels what is in flight. Closing twice is fine."""
        for member in self._members.values():
            await member.replica.close()

    async def _ask_all(self, ask: Ask[ResultT], *, call: _Call) -> dict[str, ResultT]:
        """The answers of all replicas that give one, at least one."""
        if self._only is not None:
            return {self._only.address: await ask(self._only, call.remaining)}
        return await self._repeat(lambda: self._ask_at_once(ask, call=call), call=call)

    async def _repeat(self, ask_once_round: Callable[[], Awaitable[ResultT]], *, call: _Call) -> ResultT:
        """Asks around until somebody answers, or the deadline has passed."""
        num_rounds = 0
        wrong: CorruptAnswerError | None = None
        while True:
            num_rounds += 1
            try:
                return await ask_once_round()
            except _NobodyAnsweredError as nobody:
                last = nobody
            delay = self._retry.delay_seconds(num_rounds, at_least=last.failure.retry_after_seconds)
            wrong = last.wrong or wrong
            if wrong is not None and (last.is_settled or delay >= call.remaining):
                raise wrong
            if delay >= call.remaining:
                raise self._gave_up(last.failure, call=call) from last.failure
            self._tell(last, call=call, delay=delay)
            await asyncio.sleep(delay)

    async def _ask_in_turn(
        self, members: Sequence[Member], ask: Ask[ResultT], *, call: _Call, hedges: HedgeBudget | None = None
    ) -> ResultT:
        failures: dict[str, TeacherUnavailableError] = {}
        waiting = list(members)
        while waiting:
            member = waiting.pop(0)
            if failures:
                if not call.remaining:
                    break
                self._tell(_NobodyAnsweredError(failures, num_asked=len(members)), call=call, delay=0.0)
            try:
                if hedges is None or not waiting or waiting[0].is_away():
                    return await self._ask_one(member, ask, call=call)
                return await self._ask_two(member, waiting, ask, call=call, hedges=hedges)
            except TeacherUnavailableError as error:
                failures[member.replica.address] = error
        raise _NobodyAnsweredError(failures, num_asked=len(members))

    async def _ask_two(
        self, first: Member, waiting: list[Member], ask: Ask[ResultT], *, call: _Call, hedges: HedgeBudget
    ) -> ResultT:
        """Asks the first, and after a while the first of those that wait, which then waits no longer."""
        return await race(
            lambda: self._ask_one(first, ask, call=call),
            lambda: self._ask_one(waiting.pop(0), ask, call=call),
            seconds=hedges.seconds,
            may_ask_second=hedges.spend,
        )

    async def _ask_at_once(self, ask: Ask[ResultT], *, call: _Call) -> dict[str, ResultT]:
        members = self._members.values()
        results = await asyncio.gather(
            *(self._ask_one(member, ask, call=call) for member in members), return_exceptions=True
        )
        answers: dict[str, ResultT] = {}
        failures: dict[str, TeacherUnavailableError] = {}
        for member, result in zip(members, results, strict=True):
            if isinstance(result, TeacherUnavailableError):
                failures[member.replica.address] = result
            elif isinstance(result, BaseException):
                raise result
            else:
                answers[member.replica.address] = result
        if not answers:
            raise _NobodyAnsweredError(failures, num_asked=len(members))
        return answers

    async def _ask_one(self, member: Member, ask: Ask[ResultT], *, call: _Call) -> ResultT:
        call.num_attempts += 1
        member.num_in_flight += 1
        try:
            # Lost in a quiet hour: another server may stand behind the next connection, which stands in a moment.
            if not member.replica.is_connected():
                member.is_compared = False
            if not member.is_compared:
                await self._get_to_know(member, call=call)
            result = await ask(member.replica, call.remaining)
        except TeacherUnavailableError as error:
            self._note_failure(member, error)
            raise
        except CorruptAnswerError as error:
            wrong = _WrongAnswerError(member.replica.address, error)
            self._set_away(member, wrong)
            raise wrong from error
        finally:
            member.num_in_flight -= 1
        if member.away_since is not None:
            _log.info("replica answers again: address=%s", member.replica.address)
            member.away_since = None
        return result

    async def _get_to_know(self, member: Member, *, call: _Call) -> None:
        """Compares it, unless another call does so meanwhile; that one's failure is this one's too."""
        began = time.monotonic()
        try:
            async with asyncio.timeout(call.remaining):
                await member.comparing.acquire()
        except TimeoutError as error:
            raise TeacherUnavailableError(
                f"teacher {member.replica.address} did not say in time what it hosts", code=_LATE
            ) from error
        try:
            if member.is_compared:
                return
            if member.failure is not None and member.away_since is not None and member.away_since >= began:
                raise TeacherUnavailableError(str(member.failure), code=member.failure.code) from member.failure
            try:
                await self._compare(member, call=call)
            except TeacherUnavailableError as error:
                self._note_failure(member, error)
                raise
        finally:
            member.comparing.release()

    async def _compare(self, member: Member, *, call: _Call) -> None:
        """Raises ReplicasDifferError unless it hosts the same teacher as those before it."""
        address = member.replica.address
        info = await member.replica.info(include_tokenizer=False, timeout_seconds=call.remaining)
        if self._model is not None and self._model[0] != address and difference(self._model[1], info):
            # The model itself may have taken new weights since.
            model = self._members[self._model[0]]
            try:
                self._set_model(
                    model, await model.replica.info(include_tokenizer=False, timeout_seconds=call.remaining)
                )
            except TeacherUnavailableError as error:
                self._set_away(model, error)
            if found := difference(self._model[1], info):
                raise _differ(self._model[0], address, found)
        if self._model is None or self._model[0] == address:
            self._set_model(member, info)
        member.is_compared = True

    def _set_model(self, member: Member, info: ServerInfo) -> None:
        if self._model is not None and difference(self._model[1], info):
            for other in self._members.values():
                other.is_compared = False
        self._model = (member.replica.address, info)

    def _note_failure(self, member: Member, error: TeacherUnavailableError) -> None:
        # A full queue says that it is there.
        if error.code != _FULL:
            self._set_away(member, error)

    def _set_away(self, member: Member, error: TeacherUnavailableError) -> None:
        if member.away_since is None:
            does = "answers wrongly" if isinstance(error, _WrongAnswerError) else "does not answer"
            _log.warning("replica %s: address=%s error=%r", does, member.replica.address, str(error))
        member.away_since = time.monotonic()
        member.failure = error
        member.is_compared = False

    def _gave_up(self, failure: TeacherUnavailableError, *, call: _Call) -> TeacherUnavailableError:
        return TeacherUnavailableError(
            f"none of the teacher's replicas {', '.join(self._members)} gave an answer: waited {call.elapsed:.1f} s of "
            f"at most {call.timeout_seconds:g} s, {call.num_attempts} attempt(s), the last one: {failure}",
            code=failure.code,
            retry_after_seconds=failure.retry_after_seconds,
        )

    def _tell(self, nobody: _NobodyAnsweredError, *, call: _Call, delay: float) -> None:
        if self._on_retry is not None:
            self._on_retry(
                RetryEvent(
                    attempt=call.num_attempts,
                    elapsed_seconds=call.elapsed,
                    next_delay_seconds=delay,
                    code=nobody.failure.code,
                    message=str(nobody.failure),
                    address=nobody.address,
                )
            )


async def _ask_nothing(replica: Replica, seconds: float) -> None:
    """For what comparing alone is enough."""


def _differ(one: str, other: str, found: Difference) -> ReplicasDifferError:
    return ReplicasDifferError(
        f"{one} and {other} were given as replicas of one teacher, but {found.field} is {found.value!r} at {one} and "
        f"{found.other_value!r} at {other}: start both with the same weights and settings, or name one of them"
    )
