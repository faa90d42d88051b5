"""Turns what callers speak (dataclasses over numpy) into protobuf, and answers back. Knows nothing of channels.

An answer is decoded and verified in one go: nothing that `verify` would refuse leaves this module.
"""

# T = tokens of a response, N = scored positions, K = support size

from __future__ import annotations

import numpy as np
from preceptor.v1 import teacher_pb2
from preceptor.wire import (
    LogprobDtype,
    PositionStatus,
    TokenArray,
    TokenDtype,
    WireError,
    decode_logprobs,
    decode_statuses,
    decode_token_ids,
    encode_bytes,
    encode_token_ids,
    token_dtype_for,
)

from preceptor_client import verify
from preceptor_client.errors import CorruptAnswerError
from preceptor_client.request import GroupRequest
from preceptor_client.types import (
    Capabilities,
    Chat,
    GroupScores,
    Limits,
    ResponseScores,
    ServerInfo,
    SpecialToken,
    StudentIds,
    TeacherIds,
    TeacherInfo,
    Text,
    Timings,
)


def encode_group(group: GroupRequest) -> teacher_pb2.ScoreRequest:
    """The request to send."""
    return teacher_pb2.ScoreRequest(
        request_id=group.request_id,
        teacher=group.teacher,
        adapter=group.adapter,
        tokenizer_id=group.tokenizer_id,
        prompt=_encode_prompt(group),
        responses=[
            teacher_pb2.Response(
                ids=_encode_ids(ids_T),
                score_mask=b"" if mask_T.all() else encode_bytes(mask_T),
            )
            for ids_T, mask_T in zip(group.responses_T, group.score_masks_T, strict=True)
        ],
        top_k=group.top_k,
        temperature=group.temperature,
        logprob_dtype=_wire_logprob_dtype(group.logprob_dtype),
        batch_invariant=group.batch_invariant,
    )


def decode_scores(answer: teacher_pb2.ScoreResponse, *, group: GroupRequest) -> GroupScores:
    """The answer as arrays. Raises CorruptAnswerError where it does not prove that it is about `group`."""
    _verify_header(answer, group=group)
    prompt_ids_P = group.prompt_ids_P if group.prompt_ids_P is not None else _decode_prompt_ids(answer)
    responses = []
    for index, scores in enumerate(answer.responses):
        decoded = _decode_response(answer, index=index, num_tokens=len(group.responses_T[index]))
        verify.verify_response(
            decoded,
            index=index,
            prompt_ids_P=prompt_ids_P,
            response_ids_T=group.responses_T[index],
            score_mask_T=group.score_masks_T[index],
            logprob_dtype=group.logprob_dtype,
            digest=scores.digest,
        )
        responses.append(decoded)
    return GroupScores(
        teacher=answer.teacher,
        revision=answer.revision,
        tokenizer_id=answer.tokenizer_id,
        top_k=answer.top_k,
        temperature=answer.temperature,
        prompt_ids=prompt_ids_P,
        responses=tuple(responses),
        timings=Timings(
            decode_ms=answer.timings.decode_ms,
            queue_ms=answer.timings.queue_ms,
            forward_ms=answer.timings.forward_ms,
            total_ms=answer.timings.total_ms,
        ),
    )


def decode_info(answer: teacher_pb2.GetInfoResponse) -> ServerInfo:
    """What a server hosts, and its limits."""
    return ServerInfo(
        server_version=answer.server_version,
        teachers=tuple(_decode_teacher(teacher) for teacher in answer.teachers),
        limits=Limits(
            max_top_k=answer.limits.max_top_k,
            max_responses=answer.limits.max_responses,
            max_group_tokens=answer.limits.max_group_tokens,
            max_message_bytes=answer.limits.max_message_bytes,
            max_queue_tokens=answer.limits.max_queue_tokens,
        ),
    )


def _encode_prompt(group: GroupRequest) -> teacher_pb2.Prompt:
    match group.prompt:
        case Text(text=text, omit_special_tokens=omit):
            return teacher_pb2.Prompt(text=teacher_pb2.TextPrompt(text=text, omit_special_tokens=omit))
        case Chat(messages=messages):
            turns = [teacher_pb2.ChatMessage(role=turn.role, content=turn.content) for turn in messages]
            return teacher_pb2.Prompt(chat=teacher_pb2.ChatPrompt(messages=turns))
    assert group.prompt_ids_P is not None, "a prompt of ids was checked into an array"
    match group.prompt:
        case StudentIds():
            return teacher_pb2.Prompt(student_ids=_encode_ids(group.prompt_ids_P))
        case TeacherIds():
            return teacher_pb2.Prompt(teacher_ids=_encode_ids(group.prompt_ids_P))


def _encode_ids(ids: TokenArray) -> teacher_pb2.TokenIds:
    dtype = token_dtype_for(int(ids.max()) + 1)
    wire_dtype = teacher_pb2.TOKEN_DTYPE_U16 if dtype is TokenDtype.U16 else teacher_pb2.TOKEN_DTYPE_U32
    return teacher_pb2.TokenIds(data=encode_token_ids(ids, dtype), dtype=wire_dtype)


def _wire_logprob_dtype(dtype: LogprobDtype) -> teacher_pb2.LogprobDtype.ValueType:
    return teacher_pb2.LOGPROB_DTYPE_F16 if dtype is LogprobDtype.F16 else teacher_pb2.LOGPROB_DTYPE_F32


def _verify_header(answer: teacher_pb2.ScoreResponse, *, group: GroupRequest) -> None:
    verify.verify_echo("request_id", sent=group.request_id, answered=answer.request_id)
    verify.verify_echo("top_k", sent=group.top_k, answered=answer.top_k)
    verify.verify_echo("temperature", sent=group.temperature, answered=answer.temperature)
    verify.verify_echo("logprob_dtype", sent=int(group.logprob_dtype), answered=int(answer.logprob_dtype))
    verify.verify_echo("adapter", sent=group.adapter, answered=answer.adapter)
    # Left empty, the server fills in what it chose.
    if group.teacher:
        verify.verify_echo("teacher", sent=group.teacher, answered=answer.teacher)
    if group.tokenizer_id:
        verify.verify_echo("tokenizer_id", sent=group.tokenizer_id, answered=answer.tokenizer_id)
    verify.verify_echo("responses (their number)", sent=len(group.responses_T), answered=len(answer.responses))


def _decode_prompt_ids(answer: teacher_pb2.ScoreResponse) -> TokenArray:
    try:
        ids_P = decode_token_ids(answer.prompt_ids.data, answer.prompt_ids.dtype, field="prompt_ids")
    except WireError as error:
        raise CorruptAnswerError(str(error)) from error
    if not ids_P.size:
        raise CorruptAnswerError("prompt_ids is empty, though the prompt was sent as text or chat")
    return ids_P


def _decode_response(answer: teacher_pb2.ScoreResponse, *, index: int, num_tokens: int) -> ResponseScores:
    scores = answer.responses[index]
    f32 = LogprobDtype.F32
    try:
        status_T = decode_statuses(scores.status, num_tokens=num_tokens, field="status")
        support_ids = decode_token_ids(scores.support_ids, answer.token_dtype, field="support_ids")
        support = decode_logprobs(scores.support_logprobs, answer.logprob_dtype, field="support_logprobs")
        flat = {
            name: decode_logprobs(data, f32, field=name)
            for name, data in (
                ("sampled_logprobs", scores.sampled_logprobs),
                ("log_tail_mass", scores.log_tail_mass),
                ("entropies", scores.entropies),
            )
        }
    except WireError as error:
        raise CorruptAnswerError(f"responses[{index}].{error}") from error
    positions_N = np.flatnonzero(status_T == PositionStatus.OK)
    N, K = len(positions_N), answer.top_k
    sized = {"support_ids": (support_ids.size, N * K), "support_logprobs": (support.size, N * K)}
    sized |= {name: (column.size, N) for name, column in flat.items()}
    for name, (size, expected) in sized.items():
        if size != expected:
            raise verify.corrupt(index, name, f"holds {size} entries instead of {expected} (N={N}, K={K})")
    return ResponseScores(
        status_T=status_T,
        positions_N=positions_N,
        support_ids_NK=support_ids.reshape(N, K),
        support_logprobs_NK=support.reshape(N, K),
        sampled_logprobs_N=flat["sampled_logprobs"],
        log_tail_mass_N=flat["log_tail_mass"],
        entropies_N=flat["entropies"],
    )


def _decode_teacher(teacher: teacher_pb2.TeacherInfo) -> TeacherInfo:
    can = teacher.capabilities
    return TeacherInfo(
        name=teacher.name,
        revision=teacher.revision,
        engine=teacher.engine,
        model=teacher.model,
        dtype=teacher.dtype,
        device=teacher.device,
        vocabulary_size=teacher.vocabulary_size,
        max_model_len=teacher.max_model_len,
        tokenizer_id=teacher.tokenizer_id,
        vocabulary_id=teacher.vocabulary_id,
        special_tokens=tuple(SpecialToken(id=token.id, text=token.text) for token in teacher.special_tokens),
        end_token_ids=tuple(teacher.end_token_ids),
        has_chat_template=teacher.has_chat_template,
        capabilities=Capabilities(
            temperature=can.temperature,
            batch_invariant=can.batch_invariant,
            candidates=can.candidates,
            other_tokenizers=can.other_tokenizers,
        ),
        tokenizer_json=_decode_text(teacher.tokenizer_json, field=f"teachers[{teacher.name}].tokenizer_json"),
    )


def _decode_text(data: bytes, *, field: str) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise CorruptAnswerError(f"{field} is not UTF-8: {error}") from error
