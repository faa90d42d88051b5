"""Turns columns and infos into protobuf messages. Nothing is computed or judged here."""

from __future__ import annotations

from preceptor import __version__
from preceptor.v1 import teacher_pb2 as pb
from preceptor.wire import (
    TokenArray,
    TokenDtype,
    digest_of_scored_ids,
    encode_bytes,
    encode_logprobs,
    encode_token_ids,
    token_dtype_for,
)

from preceptor_server.hosted import HostedTeacher
from preceptor_server.types import ResponseToScore, ScoreCall, ScoredCall, ScoredResponse


def encode_score_response(
    call: ScoreCall, scored: ScoredCall, teacher: HostedTeacher, *, decode_ms: float, total_ms: float
) -> pb.ScoreResponse:
    """The answer to one call."""
    token_dtype = token_dtype_for(call.student_vocabulary_size)
    teacher_dtype = token_dtype_for(teacher.info.vocabulary_size)
    answer = pb.ScoreResponse(
        request_id=call.request_id,
        teacher=teacher.name,
        revision=scored.revision,
        adapter=call.adapter,
        tokenizer_id=call.tokenizer_id,
        top_k=call.top_k,
        temperature=call.temperature,
        token_dtype=pb.TokenDtype.ValueType(token_dtype),
        logprob_dtype=pb.LogprobDtype.ValueType(call.logprob_dtype),
        responses=[
            _encode_response(call, response, answered, token_dtype=token_dtype, teacher_dtype=teacher_dtype)
            for response, answered in zip(call.responses, scored.responses, strict=True)
        ],
        timings=pb.Timings(
            decode_ms=decode_ms, queue_ms=scored.queue_ms, forward_ms=scored.forward_ms, total_ms=total_ms
        ),
        segmentation=pb.SegmentationPolicy.ValueType(call.segmentation),
    )
    if call.returns_prompt_ids:
        answer.prompt_ids.CopyFrom(_encode_ids(call.prompt_ids_P, teacher_dtype))
    return answer


def _encode_response(
    call: ScoreCall,
    response: ResponseToScore,
    answered: ScoredResponse,
    *,
    token_dtype: TokenDtype,
    teacher_dtype: TokenDtype,
) -> pb.ResponseScores:
    columns = answered.columns
    scores = pb.ResponseScores(
        status=encode_bytes(columns.status_T),
        support_ids=encode_token_ids(columns.support_ids_NK, token_dtype),
        support_logprobs=encode_logprobs(columns.support_logprobs_NK, call.logprob_dtype),
        sampled_logprobs=columns.sampled_logprobs_N.astype("<f4").tobytes(),
        log_tail_mass=columns.log_tail_mass_N.astype("<f4").tobytes(),
        entropies=b"" if columns.entropies_N is None else columns.entropies_N.astype("<f4").tobytes(),
        digest=digest_of_scored_ids(call.sent_prompt_ids, response.ids_T),
        unmapped_mass=answered.unmapped_mass,
    )
    if columns.candidate_logprobs_NC is not None:
        scores.candidate_logprobs = encode_logprobs(columns.candidate_logprobs_NC, call.logprob_dtype)
    if answered.teacher_ids_M is not None and answered.teacher_rows_N is not None:
        scores.teacher_ids.CopyFrom(_encode_ids(answered.teacher_ids_M, teacher_dtype))
        scores.teacher_rows = answered.teacher_rows_N.astype("<u4").tobytes()
    return scores


def _encode_ids(ids: TokenArray, dtype: TokenDtype) -> pb.TokenIds:
    return pb.TokenIds(data=encode_token_ids(ids, dtype), dtype=pb.TokenDtype.ValueType(dtype))


def encode_info(teacher: HostedTeacher, *, include_tokenizer: bool) -> pb.GetInfoResponse:
    """What this server hosts, and its limits."""
    info, tokenizer, limits = teacher.info, teacher.tokenizer, teacher.limits
    return pb.GetInfoResponse(
        server_version=__version__,
        teachers=[
            pb.TeacherInfo(
                name=teacher.name,
                revision=info.revision,
                engine=info.engine,
                model=info.model,
                dtype=info.dtype,
                device=info.device,
                vocabulary_size=info.vocabulary_size,
                max_model_len=info.max_model_len,
                tokenizer_id=teacher.tokenizer_id,
                vocabulary_id=tokenizer.vocabulary_id if tokenizer else "",
                special_tokens=[pb.SpecialToken(id=t.id, text=t.text) for t in tokenizer.special_tokens]
                if tokenizer
                else [],
                end_token_ids=info.end_token_ids,
                has_chat_template=tokenizer is not None and tokenizer.has_chat_template,
                capabilities=pb.Capabilities(
                    temperature=info.applies_temperature,
                    batch_invariant=info.is_batch_invariant_on_request,
                    candidates=info.scores_candidates,
                    other_tokenizers=teacher.aligner is not None,
                    entropies=info.computes_entropies,
                    weight_updates=teacher.takes_weights,
                    chat_arguments=tokenizer is not None and tokenizer.takes_chat_arguments,
                ),
                adapters=[pb.AdapterInfo(name=name, revision=info.revision_of(name)) for name in sorted(info.adapters)],
                tokenizer_json=tokenizer.json.encode() if tokenizer and include_tokenizer else b"",
            )
        ],
        limits=pb.Limits(
            max_top_k=teacher.max_top_k,
            max_responses=limits.max_responses,
            max_group_tokens=limits.max_group_tokens,
            max_message_bytes=limits.max_message_bytes,
            max_queue_tokens=teacher.max_queue_tokens,
            max_tokenizer_bytes=limits.max_tokenizer_bytes,
        ),
    )
