"""Turns columns and infos into protobuf messages. Nothing is computed or judged here."""

from __future__ import annotations

from preceptor import __version__
from preceptor.v1 import teacher_pb2 as pb
from preceptor.wire import (
    TokenDtype,
    digest_of_scored_ids,
    encode_bytes,
    encode_logprobs,
    encode_token_ids,
    token_dtype_for,
)

from preceptor_server.hosted import HostedTeacher
from preceptor_server.types import ResponseColumns, ResponseToScore, ScoreCall, ScoredGroup


def encode_score_response(
    call: ScoreCall, scored: ScoredGroup, teacher: HostedTeacher, *, decode_ms: float, total_ms: float
) -> pb.ScoreResponse:
    """The answer to one call."""
    token_dtype = token_dtype_for(teacher.info.vocabulary_size)
    response = pb.ScoreResponse(
        request_id=call.request_id,
        teacher=teacher.name,
        revision=teacher.info.revision,
        tokenizer_id=teacher.tokenizer_id,
        top_k=call.group.top_k,
        temperature=call.group.temperature,
        token_dtype=pb.TokenDtype.ValueType(token_dtype),
        logprob_dtype=pb.LogprobDtype.ValueType(call.logprob_dtype),
        responses=[
            _encode_columns(call, response, columns, token_dtype)
            for response, columns in zip(call.group.responses, scored.columns, strict=True)
        ],
        timings=pb.Timings(
            decode_ms=decode_ms, queue_ms=scored.queue_ms, forward_ms=scored.forward_ms, total_ms=total_ms
        ),
    )
    if call.returns_prompt_ids:
        data = encode_token_ids(call.group.prompt_ids_P, token_dtype)
        response.prompt_ids.CopyFrom(pb.TokenIds(data=data, dtype=pb.TokenDtype.ValueType(token_dtype)))
    return response


def _encode_columns(
    call: ScoreCall, response: ResponseToScore, columns: ResponseColumns, token_dtype: TokenDtype
) -> pb.ResponseScores:
    return pb.ResponseScores(
        status=encode_bytes(columns.status_T),
        support_ids=encode_token_ids(columns.support_ids_NK, token_dtype),
        support_logprobs=encode_logprobs(columns.support_logprobs_NK, call.logprob_dtype),
        sampled_logprobs=columns.sampled_logprobs_N.astype("<f4").tobytes(),
        log_tail_mass=columns.log_tail_mass_N.astype("<f4").tobytes(),
        entropies=columns.entropies_N.astype("<f4").tobytes(),
        digest=digest_of_scored_ids(call.group.prompt_ids_P, response.ids_T),
    )


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
                    temperature=info.applies_temperature, batch_invariant=info.is_batch_invariant_on_request
                ),
                tokenizer_json=tokenizer.json.encode() if tokenizer and include_tokenizer else b"",
            )
        ],
        limits=pb.Limits(
            max_top_k=teacher.max_top_k,
            max_responses=limits.max_responses,
            max_group_tokens=limits.max_group_tokens,
            max_message_bytes=limits.max_message_bytes,
            max_queue_tokens=teacher.max_queue_tokens,
        ),
    )
