"""Turns a ScoredCall into a ScoreResponse. Nothing is computed or judged here."""

from __future__ import annotations

from preceptor.v1 import teacher_pb2 as pb
from preceptor.wire import (
    TokenArray,
    TokenDtype,
    encode_bytes,
    encode_logprobs,
    encode_token_ids,
    token_dtype_for,
)

from preceptor_server.calls import ScoredCall, ScoredResponse


def encode_score_response(scored: ScoredCall) -> pb.ScoreResponse:
    """The answer to one call."""
    teacher_dtype = token_dtype_for(scored.teacher_vocabulary_size)
    timings = scored.timings
    answer = pb.ScoreResponse(
        request_id=scored.request_id,
        teacher=scored.teacher,
        revision=scored.revision,
        adapter=scored.adapter,
        tokenizer_id=scored.tokenizer_id,
        top_k=scored.top_k,
        temperature=scored.temperature,
        token_dtype=pb.TokenDtype.ValueType(token_dtype_for(scored.student_vocabulary_size)),
        logprob_dtype=pb.LogprobDtype.ValueType(scored.logprob_dtype),
        responses=[_encode_response(response, scored, teacher_dtype=teacher_dtype) for response in scored.responses],
        timings=pb.Timings(
            decode_ms=timings.decode_ms,
            queue_ms=timings.queue_ms,
            forward_ms=timings.forward_ms,
            total_ms=timings.total_ms,
        ),
        segmentation=pb.SegmentationPolicy.ValueType(scored.segmentation),
    )
    if scored.returns_prompt_ids:
        answer.prompt_ids.CopyFrom(_encode_ids(scored.prompt_ids_P, teacher_dtype))
    return answer


def _encode_response(response: ScoredResponse, scored: ScoredCall, *, teacher_dtype: TokenDtype) -> pb.ResponseScores:
    columns = response.columns
    scores = pb.ResponseScores(
        status=encode_bytes(columns.status_T),
        support_ids=encode_token_ids(columns.support_ids_NK, token_dtype_for(scored.student_vocabulary_size)),
        support_logprobs=encode_logprobs(columns.support_logprobs_NK, scored.logprob_dtype),
        sampled_logprobs=columns.sampled_logprobs_N.astype("<f4").tobytes(),
        log_tail_mass=columns.log_tail_mass_N.astype("<f4").tobytes(),
        entropies=b"" if columns.entropies_N is None else columns.entropies_N.astype("<f4").tobytes(),
        digest=response.digest,
        unmapped_mass=response.unmapped_mass,
    )
    if columns.candidate_logprobs_NC is not None:
        scores.candidate_logprobs = encode_logprobs(columns.candidate_logprobs_NC, scored.logprob_dtype)
    if response.teacher_ids_M is not None and response.teacher_rows_N is not None:
        scores.teacher_ids.CopyFrom(_encode_ids(response.teacher_ids_M, teacher_dtype))
        scores.teacher_rows = response.teacher_rows_N.astype("<u4").tobytes()
    return scores


def _encode_ids(ids: TokenArray, dtype: TokenDtype) -> pb.TokenIds:
    return pb.TokenIds(data=encode_token_ids(ids, dtype), dtype=pb.TokenDtype.ValueType(dtype))
