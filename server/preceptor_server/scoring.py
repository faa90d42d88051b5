"""One call from its arrival to its answer: checked, read in the teacher's tokens, scheduled, projected back.

What takes more than a moment runs in a thread, so that other calls are not kept waiting.
"""

# T = tokens of a response, N = scored positions, K = support size, M = tokens that the teacher reads for a response

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np
from preceptor.wire import PositionStatus, SegmentationPolicy, StatusArray, digest_of_scored_ids

from preceptor_server.alignment.candidates import merged_teacher_ids, teacher_candidates
from preceptor_server.alignment.projection import Projected, num_teacher_tokens, project
from preceptor_server.alignment.reading import Reading
from preceptor_server.alignment.types import Alignment
from preceptor_server.callers import Caller
from preceptor_server.calls import ScoreCall, ScoredCall, ScoredResponse, Timings
from preceptor_server.hosted import HostedTeacher
from preceptor_server.preparing import PreparedCall, check_adapter_name, check_group_tokens, prepare_call
from preceptor_server.types import ResponseColumns, ResponseToScore, ScoredGroup, ScoreGroup

_SMALL_TOKENS = 8192
"""Up to so many tokens an answer that needs no alignment is put together on the event loop: hashing them takes less
than handing them to a thread."""


ResultT = TypeVar("ResultT")

_Scheduled = Callable[[ScoreGroup], Awaitable[ScoredGroup]]
"""Waits for a group's turn, and returns its columns."""


class _Aside(Protocol):
    """Does work of so many bytes on the workbench, by the caller's turn."""

    async def __call__(self, work: Callable[[], ResultT], num_bytes: int) -> ResultT: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class _Scores:
    """What became of a prepared call."""

    responses: tuple[ScoredResponse, ...]
    revision: str
    queue_ms: float = 0.0
    forward_ms: float = 0.0


Charged = Callable[[int], AbstractContextManager[None]]
"""Charges a caller for so many tokens, and gives them back where the block raises."""


async def score_call(
    call: ScoreCall,
    teacher: HostedTeacher,
    *,
    caller: Caller,
    timeout_seconds: float | None,
    charged: Charged = lambda _: nullcontext(),
) -> ScoredCall:
    """Raises what `prepare_call`, the scheduler and `charged` raise, and InvalidRequestError where the teacher's
    reading exceeds a limit."""
    started = time.monotonic()
    deadline = None if timeout_seconds is None else started + timeout_seconds
    caller_key = caller.tenant.name
    prepared = await prepare_call(call, teacher, caller_key=caller_key, timeout_seconds=timeout_seconds)
    decode_ms = (time.monotonic() - started) * 1000

    async def scheduled(group: ScoreGroup) -> ScoredGroup:
        with charged(group.num_tokens):
            return await teacher.scheduler.score(
                group,
                caller=caller,
                timeout_seconds=None if deadline is None else deadline - time.monotonic(),
            )

    async def aside(work: Callable[[], ResultT], num_bytes: int) -> ResultT:
        left = None if deadline is None else deadline - time.monotonic()
        return await teacher.workbench.run(
            lambda _: work(), caller_key=caller_key, num_bytes=num_bytes, timeout_seconds=left
        )

    scores = await _score(prepared, teacher, scheduled, aside)
    return ScoredCall(
        responses=scores.responses,
        request_id=call.request_id,
        teacher=teacher.name,
        revision=scores.revision,
        adapter=call.adapter,
        tokenizer_id=prepared.tokenizer_id,
        top_k=call.top_k,
        temperature=call.temperature,
        logprob_dtype=call.logprob_dtype,
        segmentation=prepared.segmentation,
        student_vocabulary_size=prepared.student_vocabulary_size,
        teacher_vocabulary_size=teacher.info.vocabulary_size,
        prompt_ids_P=prepared.prompt_ids_P,
        returns_prompt_ids=prepared.returns_prompt_ids,
        timings=Timings(
            decode_ms=decode_ms,
            queue_ms=scores.queue_ms,
            forward_ms=scores.forward_ms,
            total_ms=(time.monotonic() - started) * 1000,
        ),
    )


async def _score(prepared: PreparedCall, teacher: HostedTeacher, scheduled: _Scheduled, aside: _Aside) -> _Scores:
    revision = _revision(prepared, teacher)
    if not any(response.score_mask_T.any() for response in prepared.responses):
        # That its prompt can be read is all that was asked, and preparing it has shown it.
        return _Scores(responses=tuple(_excluded(prepared, one) for one in prepared.responses), revision=revision)
    if prepared.alignment is None:
        group = _group(prepared, prepared.responses, top_k=prepared.call.top_k)
        scored = await scheduled(group)
        if group.num_tokens <= _SMALL_TOKENS:
            return _as_they_are(prepared, scored)
        return await aside(lambda: _as_they_are(prepared, scored), prepared.call.num_bytes)
    return await _score_aligned(prepared, prepared.alignment, teacher, scheduled, aside)


def _revision(prepared: PreparedCall, teacher: HostedTeacher) -> str:
    """Of the moment. Raises UnknownTeacherError where the adapter was taken away while the call was prepared."""
    check_adapter_name(prepared.call.adapter, teacher)
    return teacher.info.revision_of(prepared.call.adapter)


async def _score_aligned(
    prepared: PreparedCall, alignment: Alignment, teacher: HostedTeacher, scheduled: _Scheduled, aside: _Aside
) -> _Scores:
    revision = _revision(prepared, teacher)
    num_bytes = prepared.call.num_bytes
    readings, responses = await aside(lambda: _read_and_ask(prepared, alignment, teacher), num_bytes)
    if not responses:
        pairs = zip(readings, prepared.responses, strict=True)
        unscored = tuple(_unscored(prepared, reading, response) for reading, response in pairs)
        return _Scores(responses=unscored, revision=revision)
    # Of more than K the engine may give fewer: then fewer of the K have a mass of their own, and the tail has theirs.
    top_k = num_teacher_tokens(alignment, top_k=prepared.call.top_k, merges_end_tokens=_merges(prepared))
    group = _group(prepared, responses, top_k=min(top_k, teacher.info.largest_top_k), num_bytes_besides=num_bytes)
    check_group_tokens(group, teacher)
    scored = await scheduled(group)
    return await aside(lambda: _project(prepared, alignment, readings, scored), num_bytes)


def _group(
    prepared: PreparedCall, responses: Sequence[ResponseToScore], *, top_k: int, num_bytes_besides: int = 0
) -> ScoreGroup:
    call = prepared.call
    return ScoreGroup(
        prompt_ids_P=prepared.prompt_ids_P,
        responses=tuple(responses),
        top_k=top_k,
        temperature=call.temperature,
        batch_invariant=call.batch_invariant,
        adapter=call.adapter,
        num_bytes_besides=num_bytes_besides,
    )


def _as_they_are(prepared: PreparedCall, scored: ScoredGroup) -> _Scores:
    """The student's ids are the teacher's."""
    pairs = zip(prepared.responses, scored.columns, strict=True)
    return _scores(
        [ScoredResponse(columns=columns, digest=_digest(prepared, response)) for response, columns in pairs],
        scored,
    )


def _scores(responses: Sequence[ScoredResponse], scored: ScoredGroup) -> _Scores:
    return _Scores(
        responses=tuple(responses), revision=scored.revision, queue_ms=scored.queue_ms, forward_ms=scored.forward_ms
    )


def _digest(prepared: PreparedCall, response: ResponseToScore) -> bytes:
    return digest_of_scored_ids(prepared.sent_prompt_ids, response.ids_T)


def _read_and_ask(
    prepared: PreparedCall, alignment: Alignment, teacher: HostedTeacher
) -> tuple[list[Reading], list[ResponseToScore]]:
    """How the teacher reads each response, and the readings of which something is wanted, as the engine takes them."""
    assert teacher.aligner is not None, "an alignment comes from the teacher's aligner"
    readings = teacher.aligner.reader.read(
        prepared.responses,
        alignment,
        policy=prepared.segmentation,
        paper_token_ids=prepared.call.paper_token_ids,
        room=teacher.info.max_model_len - len(prepared.prompt_ids_P),
    )
    merges = _merges(prepared) and teacher.info.scores_candidates
    merged_ids = merged_teacher_ids(alignment, merges_end_tokens=merges)
    responses = [
        ResponseToScore(
            ids_T=reading.teacher_ids_M,
            score_mask_T=reading.wanted_M,
            candidate_ids_TC=teacher_candidates(response, reading, alignment, merged_ids=merged_ids),
        )
        for reading, response in zip(readings, prepared.responses, strict=True)
        if reading.wanted_M.any()
    ]
    return readings, responses


def _project(prepared: PreparedCall, alignment: Alignment, readings: Sequence[Reading], scored: ScoredGroup) -> _Scores:
    columns = iter(scored.columns)
    answers = [
        _projected(prepared, alignment, reading, response, next(columns))
        if reading.wanted_M.any()
        else _unscored(prepared, reading, response)
        for reading, response in zip(readings, prepared.responses, strict=True)
    ]
    return _scores(answers, scored)


def _projected(
    prepared: PreparedCall,
    alignment: Alignment,
    reading: Reading,
    response: ResponseToScore,
    columns: ResponseColumns,
) -> ScoredResponse:
    projected: Projected = project(
        columns,
        reading,
        alignment,
        top_k=prepared.call.top_k,
        merges_end_tokens=_merges(prepared),
        candidate_ids_TC=response.candidate_ids_TC,
    )
    is_own = np.array_equal(reading.teacher_ids_M, response.ids_T)
    return ScoredResponse(
        columns=projected.columns,
        digest=_digest(prepared, response),
        teacher_ids_M=None if is_own else reading.teacher_ids_M,
        teacher_rows_N=None if is_own else projected.rows_N,
        unmapped_mass=projected.unmapped_mass,
    )


def _unscored(prepared: PreparedCall, reading: Reading, response: ResponseToScore) -> ScoredResponse:
    """No position of the response can be scored."""
    return ScoredResponse(
        columns=_no_rows(response, prepared.call.top_k, status_T=reading.status_T),
        digest=_digest(prepared, response),
        teacher_ids_M=reading.teacher_ids_M,
        teacher_rows_N=np.zeros(0, np.int64),
    )


def _excluded(prepared: PreparedCall, response: ResponseToScore) -> ScoredResponse:
    """No position of the response is to be scored."""
    status_T = np.full(len(response.ids_T), PositionStatus.EXCLUDED, np.uint8)
    columns = _no_rows(response, prepared.call.top_k, status_T=status_T)
    return ScoredResponse(columns=columns, digest=_digest(prepared, response))


def _no_rows(response: ResponseToScore, top_k: int, *, status_T: StatusArray) -> ResponseColumns:
    nothing, no_rows, named_TC = np.zeros(0, np.float32), np.zeros((0, top_k)), response.candidate_ids_TC
    return ResponseColumns(
        status_T=status_T,
        support_ids_NK=no_rows.astype(np.int64),
        support_logprobs_NK=no_rows.astype(np.float32),
        sampled_logprobs_N=nothing,
        log_tail_mass_N=nothing,
        entropies_N=nothing,
        candidate_logprobs_NC=None if named_TC is None else np.zeros((0, named_TC.shape[1]), np.float32),
    )


def _merges(prepared: PreparedCall) -> bool:
    """AS_IS and PAPER leave every end token by itself."""
    return prepared.segmentation in (SegmentationPolicy.MASK, SegmentationPolicy.CANONICAL)
