"""Keeps what was scored last, for whoever looks into it later. Bounded by number and by bytes; the oldest make room."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from dataclasses import dataclass

import numpy as np
from preceptor.v1 import teacher_pb2 as pb

from preceptor_server.hosted import HostedTeacher
from preceptor_server.http.answers import RecordAnswer
from preceptor_server.http.columns import prompt_ids_of
from preceptor_server.http.texts import joined_text
from preceptor_server.serving import NO_NOTES, Caller, Notes, Outcome

PREVIEW_CHARACTERS = 120
_PREVIEW_TOKENS = 60
_PREVIEW_MESSAGES = 4
_MAX_NAME = 128
_RECORD_BYTES = 1024
"""What a record takes besides its messages."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """A record, and the messages that it is about; without them where the group failed, or is too large to keep."""

    record: RecordAnswer
    request: pb.ScoreRequest | None = None
    response: pb.ScoreResponse | None = None
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
        self.teacher: HostedTeacher | None = None
        """Names the tokens of previews, once it serves."""

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

    def began(self, caller: Caller) -> None:
        """Nothing is known yet."""

    def ended(self, outcome: Outcome) -> None:
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

    def after(self, number: int, *, limit: int) -> list[RecordAnswer]:
        """The oldest `limit` of those with larger numbers."""
        return [kept.record for kept in self._kept if kept.record.number > number][:limit]

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

    def _keep(self, outcome: Outcome) -> Kept:
        record = _record(self._last, outcome, self.teacher)
        if outcome.response is None:
            return Kept(record=record)
        num_logprobs = sum(len(logprobs or ()) for logprobs in outcome.notes.student_logprobs)
        num_bytes = _RECORD_BYTES + outcome.request.ByteSize() + outcome.response.ByteSize() + 32 * num_logprobs
        if num_bytes > self._max_bytes:
            return Kept(record=record)
        return Kept(
            record=record,
            request=outcome.request,
            response=outcome.response,
            notes=outcome.notes,
            num_bytes=num_bytes,
        )


def _record(number: int, outcome: Outcome, teacher: HostedTeacher | None) -> RecordAnswer:
    request, response = outcome.request, outcome.response
    return RecordAnswer(
        number=number,
        at=time.time(),
        transport=outcome.caller.transport,
        caller=outcome.caller.name[:_MAX_NAME],
        request_id=request.request_id[:_MAX_NAME],
        tokenizer_id=(response.tokenizer_id if response else request.tokenizer_id)[:_MAX_NAME],
        adapter=request.adapter[:_MAX_NAME],
        num_prompt_tokens=len(prompt_ids_of(request, response)) if response else 0,
        num_responses=len(request.responses),
        num_positions=outcome.num_positions,
        top_k=request.top_k,
        temperature=request.temperature if np.isfinite(request.temperature) else 0.0,
        outcome=outcome.reason,
        mean_sampled_logprob=None if outcome.notes.is_next else _mean_sampled_logprob(response),
        preview=_preview(request, response, teacher),
        total_ms=outcome.total_seconds * 1000,
    )


def _mean_sampled_logprob(response: pb.ScoreResponse | None) -> float | None:
    """None where nothing was scored, or something is minus infinity."""
    data = b"".join(scores.sampled_logprobs for scores in response.responses) if response else b""
    mean = float(np.frombuffer(data, "<f4").mean(dtype=np.float64)) if data else -np.inf
    return mean if np.isfinite(mean) else None


def _preview(request: pb.ScoreRequest, response: pb.ScoreResponse | None, teacher: HostedTeacher | None) -> str:
    """First characters of the prompt; of a failed one only where it is text."""
    prompt = request.prompt
    kind = prompt.WhichOneof("kind")
    if kind == "text":
        return prompt.text.text[:PREVIEW_CHARACTERS]
    if kind == "chat":
        messages = prompt.chat.messages[:_PREVIEW_MESSAGES]
        turns = (f"{message.role[:_MAX_NAME]}: {message.content[:PREVIEW_CHARACTERS]}" for message in messages)
        return "\n".join(turns)[:PREVIEW_CHARACTERS]
    if response is None or teacher is None or teacher.aligner is None:
        return ""
    ids = prompt_ids_of(request, response)
    table = teacher.aligner.vocabulary.table
    return joined_text(table, ids[:_PREVIEW_TOKENS].tolist())[:PREVIEW_CHARACTERS]
