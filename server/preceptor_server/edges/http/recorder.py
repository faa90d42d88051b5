"""Keeps what was scored last, for whoever looks into it later. Bounded by number and by bytes; the oldest make room."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from dataclasses import dataclass
from itertools import islice

import numpy as np
from preceptor.chat import Chat

from preceptor_server.calls import ScoreCall, ScoredCall, Text
from preceptor_server.edges.http.answers import RecordAnswer
from preceptor_server.edges.http.texts import joined_text
from preceptor_server.observability.observer import Asker, Refusal
from preceptor_server.serving import NO_NOTES, Notes, ServedOutcome
from preceptor_server.teachers import Teachers

PREVIEW_CHARACTERS = 120
_PREVIEW_TOKENS = 60
_PREVIEW_MESSAGES = 4
_MAX_NAME = 128
_RECORD_BYTES = 1024
"""What a record takes besides its call and its answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """A record, and the call and answer that it is about; without them where the group failed or is too large."""

    record: RecordAnswer
    tenant: str
    call: ScoreCall | None = None
    scored: ScoredCall | None = None
    notes: Notes = NO_NOTES
    num_bytes: int = _RECORD_BYTES


class Recorder:
    """An observer of the ScoreService."""

    def __init__(self, *, max_records: int, max_bytes: int) -> None:
        self._max_records = max_records
        self._max_bytes = max_bytes
        self._kept: deque[Kept] = deque()
        self._num_bytes = 0
        self._last = 0
        self._changed = asyncio.Event()
        self._is_closed = False
        self.teachers: Teachers | None = None
        """Name the tokens of previews, once they serve."""

    @property
    def is_recording(self) -> bool:
        return self._max_records > 0

    @property
    def last(self) -> int:
        """The newest number; 0 before there is one."""
        return self._last

    @property
    def num_bytes(self) -> int:
        return self._num_bytes

    def began(self, caller: Asker) -> None:
        """Nothing is known yet."""

    def refused(self, refusal: Refusal) -> None:
        """There is nothing to show of it."""

    def ended(self, outcome: ServedOutcome) -> None:
        if not self.is_recording:
            return
        self._last += 1
        kept = self._keep(outcome)
        self._kept.append(kept)
        self._num_bytes += kept.num_bytes
        while len(self._kept) > self._max_records or self._num_bytes > self._max_bytes:
            self._num_bytes -= self._kept.popleft().num_bytes
        self._wake()

    def find(self, number: int) -> Kept | None:
        """None where there is no such record, or no more."""
        return next((kept for kept in self._kept if kept.record.number == number), None)

    def after(self, number: int, *, limit: int, tenant: str | None = None) -> list[RecordAnswer]:
        """The oldest `limit` of those with larger numbers, of one tenant or of all."""
        kept = (one for one in self._kept if one.record.number > number and tenant in (None, one.tenant))
        return [one.record for one in islice(kept, limit)]

    async def wait_for_one_after(self, number: int, *, timeout_seconds: float) -> None:
        """Returns once there is one, when the time is over, or when the server drains."""
        deadline = time.monotonic() + timeout_seconds
        while self._last <= number and not self._is_closed and self.is_recording:
            try:
                await asyncio.wait_for(self._changed.wait(), deadline - time.monotonic())
            except TimeoutError:
                return

    def close(self) -> None:
        """Lets go of all who wait."""
        self._is_closed = True
        self._wake()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    def _keep(self, outcome: ServedOutcome) -> Kept:
        record, tenant = _record(self._last, outcome, self.teachers), outcome.caller.tenant.name
        if outcome.scored is None:
            return Kept(record=record, tenant=tenant)
        num_logprobs = sum(len(logprobs or ()) for logprobs in outcome.notes.student_logprobs)
        num_bytes = _RECORD_BYTES + outcome.call.num_bytes + outcome.scored.num_bytes + 32 * num_logprobs
        if num_bytes > self._max_bytes:
            return Kept(record=record, tenant=tenant)
        return Kept(
            record=record,
            call=outcome.call,
            scored=outcome.scored,
            tenant=tenant,
            notes=outcome.notes,
            num_bytes=num_bytes,
        )


def _record(number: int, outcome: ServedOutcome, teachers: Teachers | None) -> RecordAnswer:
    call, scored = outcome.call, outcome.scored
    return RecordAnswer(
        number=number,
        at=time.time(),
        transport=outcome.caller.transport,
        caller=outcome.caller.name[:_MAX_NAME],
        request_id=call.request_id[:_MAX_NAME],
        tokenizer_id=(scored.tokenizer_id if scored else call.tokenizer_id)[:_MAX_NAME],
        adapter=call.adapter[:_MAX_NAME],
        num_prompt_tokens=len(scored.prompt_ids_P) if scored else 0,
        num_responses=len(call.responses),
        num_positions=outcome.num_positions,
        top_k=call.top_k,
        temperature=call.temperature if np.isfinite(call.temperature) else 0.0,
        outcome=outcome.reason,
        mean_sampled_logprob=None if outcome.notes.is_next else _mean_sampled_logprob(scored),
        preview=_preview(call, scored, teachers),
        total_ms=outcome.total_seconds * 1000,
    )


def _mean_sampled_logprob(scored: ScoredCall | None) -> float | None:
    """None where nothing was scored, or something is minus infinity."""
    if scored is None or not scored.num_positions:
        return None
    columns = [response.columns.sampled_logprobs_N for response in scored.responses]
    mean = float(np.concatenate(columns).mean(dtype=np.float64))
    return mean if np.isfinite(mean) else None


def _preview(call: ScoreCall, scored: ScoredCall | None, teachers: Teachers | None) -> str:
    """First characters of the prompt; of a failed one only where it is text."""
    match call.prompt:
        case Text(text=text):
            return text[:PREVIEW_CHARACTERS]
        case Chat(messages=messages):
            turns = (
                f"{message.role[:_MAX_NAME]}: {message.content[:PREVIEW_CHARACTERS]}"
                for message in messages[:_PREVIEW_MESSAGES]
            )
            return "\n".join(turns)[:PREVIEW_CHARACTERS]
    teacher = teachers.get(scored.teacher) if teachers and scored else None
    if scored is None or teacher is None or teacher.aligner is None:
        return ""
    ids = scored.prompt_ids_P[:_PREVIEW_TOKENS].tolist()
    return joined_text(teacher.aligner.vocabulary.table, ids)[:PREVIEW_CHARACTERS]
