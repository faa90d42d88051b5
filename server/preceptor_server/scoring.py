"""One call from its decoded form to its answer: read it in the teacher's tokens, await the scheduler, project back.

Knows nothing of gRPC. What takes more than a moment runs in a thread, so that other calls are not kept waiting.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import numpy as np
from preceptor.wire import PositionStatus, SegmentationPolicy, StatusArray

from preceptor_server.alignment.candidates import merged_teacher_ids, teacher_candidates
from preceptor_server.alignment.projection import num_teacher_tokens, project
from preceptor_server.alignment.reading import Reading
from preceptor_server.alignment.types import Alignment
from preceptor_server.callers import Caller
from preceptor_server.decoding import check_group_tokens
from preceptor_server.hosted import HostedTeacher
from preceptor_server.tenants.tenant import Tenant
from preceptor_server.types import (
    ResponseColumns,
    ResponseToScore,
    ScoreCall,
    ScoredCall,
    ScoredGroup,
    ScoredResponse,
    ScoreGroup,
)


async def score_call(
    call: ScoreCall, teacher: HostedTeacher, *, caller: str, timeout_seconds: float | None, weight: float = 1.0
) -> ScoredCall:
    """Raises what the scheduler raises, and InvalidRequestError where the teacher's reading exceeds a limit."""
    if not any(response.score_mask_T.any() for response in call.responses):
        # That its prompt can be read is all that was asked, and decoding has shown it.
        excluded = tuple(_excluded(response, call.top_k) for response in call.responses)
        return ScoredCall(responses=excluded, revision=teacher.info.revision_of(call.adapter))
    if call.alignment is None:
        group = _group(call, call.responses, top_k=call.top_k)
        asking = _caller_of(caller, weight=weight)
        scored = await teacher.scheduler.score(group, caller=asking, timeout_seconds=timeout_seconds)
        answers = tuple(ScoredResponse(columns=columns) for columns in scored.columns)
        return _scored_call(answers, scored)
    revision = teacher.info.revision_of(call.adapter)
    started = asyncio.get_running_loop().time()
    readings = await asyncio.to_thread(_read, call, teacher)
    responses = await asyncio.to_thread(_ask, call, call.alignment, readings, teacher)
    if not responses:
        pairs = zip(readings, call.responses, strict=True)
        unscored = tuple(_unscored(reading, response, call.top_k) for reading, response in pairs)
        return ScoredCall(responses=unscored, revision=revision)
    # Of more than K the engine may give fewer: then fewer of the K have a mass of their own, and the tail has theirs.
    top_k = num_teacher_tokens(call.alignment, top_k=call.top_k, merges_end_tokens=_merges(call))
    group = _group(call, responses, top_k=min(top_k, teacher.info.largest_top_k))
    check_group_tokens(group, teacher)
    if timeout_seconds is not None:
        timeout_seconds -= asyncio.get_running_loop().time() - started
    asking = _caller_of(caller, weight=weight)
    scored = await teacher.scheduler.score(group, caller=asking, timeout_seconds=timeout_seconds)
    return await asyncio.to_thread(_project, call, call.alignment, readings, scored)


def _caller_of(name: str, *, weight: float) -> Caller:
    """A tenant for each name."""
    return Caller(tenant=Tenant(name=name, weight=weight), name=name, transport="grpc")


def _group(call: ScoreCall, responses: Sequence[ResponseToScore], *, top_k: int) -> ScoreGroup:
    return ScoreGroup(
        prompt_ids_P=call.prompt_ids_P,
        responses=tuple(responses),
        top_k=top_k,
        temperature=call.temperature,
        batch_invariant=call.batch_invariant,
        adapter=call.adapter,
    )


def _scored_call(answers: Sequence[ScoredResponse], scored: ScoredGroup) -> ScoredCall:
    return ScoredCall(
        responses=tuple(answers), revision=scored.revision, queue_ms=scored.queue_ms, forward_ms=scored.forward_ms
    )


def _read(call: ScoreCall, teacher: HostedTeacher) -> list[Reading]:
    assert call.alignment is not None, "read only what is aligned"
    assert teacher.aligner is not None, "an alignment comes from the teacher's aligner"
    return teacher.aligner.reader.read(
        call.responses,
        call.alignment,
        policy=call.segmentation,
        paper_token_ids=call.paper_token_ids,
        room=teacher.info.max_model_len - len(call.prompt_ids_P),
    )


def _ask(
    call: ScoreCall, alignment: Alignment, readings: Sequence[Reading], teacher: HostedTeacher
) -> list[ResponseToScore]:
    """The readings of which something is wanted, as the engine takes them."""
    merges = _merges(call) and teacher.info.scores_candidates
    merged_ids = merged_teacher_ids(alignment, merges_end_tokens=merges)
    return [
        ResponseToScore(
            ids_T=reading.teacher_ids_M,
            score_mask_T=reading.wanted_M,
            candidate_ids_TC=teacher_candidates(response, reading, alignment, merged_ids=merged_ids),
        )
        for reading, response in zip(readings, call.responses, strict=True)
        if reading.wanted_M.any()
    ]


def _project(call: ScoreCall, alignment: Alignment, readings: Sequence[Reading], scored: ScoredGroup) -> ScoredCall:
    columns = iter(scored.columns)
    answers = [
        _projected(call, alignment, reading, response, next(columns))
        if reading.wanted_M.any()
        else _unscored(reading, response, call.top_k)
        for reading, response in zip(readings, call.responses, strict=True)
    ]
    return _scored_call(answers, scored)


def _projected(
    call: ScoreCall, alignment: Alignment, reading: Reading, response: ResponseToScore, columns: ResponseColumns
) -> ScoredResponse:
    projected = project(
        columns,
        reading,
        alignment,
        top_k=call.top_k,
        merges_end_tokens=_merges(call),
        candidate_ids_TC=response.candidate_ids_TC,
    )
    is_own = np.array_equal(reading.teacher_ids_M, response.ids_T)
    return ScoredResponse(
        columns=projected.columns,
        teacher_ids_M=None if is_own else reading.teacher_ids_M,
        teacher_rows_N=None if is_own else projected.rows_N,
        unmapped_mass=projected.unmapped_mass,
    )


def _unscored(reading: Reading, response: ResponseToScore, top_k: int) -> ScoredResponse:
    """No position of the response can be scored."""
    return ScoredResponse(
        teacher_ids_M=reading.teacher_ids_M,
        teacher_rows_N=np.zeros(0, np.int64),
        columns=_no_rows(response, top_k, status_T=reading.status_T),
    )


def _excluded(response: ResponseToScore, top_k: int) -> ScoredResponse:
    """No position of the response is to be scored."""
    status_T = np.full(len(response.ids_T), PositionStatus.EXCLUDED, np.uint8)
    return ScoredResponse(columns=_no_rows(response, top_k, status_T=status_T))


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


def _merges(call: ScoreCall) -> bool:
    """AS_IS and PAPER leave every end token by itself."""
    return call.segmentation in (SegmentationPolicy.MASK, SegmentationPolicy.CANONICAL)
