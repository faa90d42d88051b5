"""Turns a group (dataclasses over numpy) into protobuf, and its answer back. Knows nothing of channels.

An answer is decoded and verified in one go: nothing that `verify` would refuse leaves this module.
"""

# P = prompt tokens, T = tokens of a response, M = the teacher's tokens for it, N = scored positions, K = support size,
# C = candidates per position

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from google.protobuf.message import DecodeError
from preceptor.json_values import object_text
from preceptor.v1 import teacher_pb2
from preceptor.wire import (
    LogprobArray,
    LogprobDtype,
    PositionStatus,
    SegmentationPolicy,
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
    Chat,
    ChatMessage,
    GroupScores,
    ResponseScores,
    StudentIds,
    TeacherIds,
    Text,
    Timings,
)

_WIRE_POLICIES = {
    None: teacher_pb2.SEGMENTATION_POLICY_UNSPECIFIED,
    SegmentationPolicy.AS_IS: teacher_pb2.SEGMENTATION_POLICY_AS_IS,
    SegmentationPolicy.MASK: teacher_pb2.SEGMENTATION_POLICY_MASK,
    SegmentationPolicy.CANONICAL: teacher_pb2.SEGMENTATION_POLICY_CANONICAL,
    SegmentationPolicy.PAPER: teacher_pb2.SEGMENTATION_POLICY_PAPER,
}


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
                candidates=_encode_candidates(candidate_ids_TC),
            )
            for ids_T, mask_T, candidate_ids_TC in zip(
                group.responses_T, group.score_masks_T, group.candidate_ids_TC, strict=True
            )
        ],
        top_k=group.top_k,
        temperature=group.temperature,
        logprob_dtype=_wire_logprob_dtype(group.logprob_dtype),
        batch_invariant=group.batch_invariant,
        segmentation=_WIRE_POLICIES[group.segmentation],
        paper_token_ids=group.paper_token_ids,
    )


def decode_scores(answer: teacher_pb2.ScoreResponse, *, group: GroupRequest) -> GroupScores:
    """The answer as arrays. Raises CorruptAnswerError where it does not prove that it is about `group`."""
    _verify_header(answer, group=group)
    read_ids_P = _decode_prompt_ids(answer, group=group)
    responses = []
    for index, scores in enumerate(answer.responses):
        decoded = _decode_response(answer, index=index, group=group)
        verify.verify_response(
            decoded,
            index=index,
            prompt_ids_P=read_ids_P if group.prompt_ids_P is None else group.prompt_ids_P,
            response_ids_T=group.responses_T[index],
            score_mask_T=group.score_masks_T[index],
            logprob_dtype=group.logprob_dtype,
            segmentation=SegmentationPolicy(answer.segmentation),
            digest=scores.digest,
        )
        responses.append(decoded)
    verify.verify_alike(responses)
    return GroupScores(
        teacher=answer.teacher,
        revision=answer.revision,
        tokenizer_id=answer.tokenizer_id,
        top_k=answer.top_k,
        temperature=answer.temperature,
        segmentation=SegmentationPolicy(answer.segmentation),
        prompt_ids=read_ids_P,
        responses=tuple(responses),
        timings=Timings(
            decode_ms=answer.timings.decode_ms,
            queue_ms=answer.timings.queue_ms,
            forward_ms=answer.timings.forward_ms,
            total_ms=answer.timings.total_ms,
        ),
    )


def encode_stored(answer: teacher_pb2.ScoreResponse) -> bytes:
    """An answer without what belongs to one call alone: its request's id, and where that one's time went."""
    stored = teacher_pb2.ScoreResponse()
    stored.CopyFrom(answer)
    stored.ClearField("request_id")
    stored.ClearField("timings")
    return stored.SerializeToString()


def decode_stored(data: bytes, *, group: GroupRequest) -> GroupScores:
    """A stored answer as one to `group`, verified like any other; no time went into it. Raises CorruptAnswerError."""
    try:
        answer = teacher_pb2.ScoreResponse.FromString(data)
    except DecodeError as error:
        raise CorruptAnswerError("the stored answer is no ScoreResponse") from error
    answer.request_id = group.request_id
    return decode_scores(answer, group=group)


def _encode_prompt(group: GroupRequest) -> teacher_pb2.Prompt:
    match group.prompt:
        case Text(text=text, omit_special_tokens=omit):
            return teacher_pb2.Prompt(text=teacher_pb2.TextPrompt(text=text, omit_special_tokens=omit))
        case Chat() as chat:
            return teacher_pb2.Prompt(chat=_encode_chat(chat))
    assert group.prompt_ids_P is not None, "a prompt of ids was checked into an array"
    match group.prompt:
        case StudentIds():
            return teacher_pb2.Prompt(student_ids=_encode_ids(group.prompt_ids_P))
        case TeacherIds():
            return teacher_pb2.Prompt(teacher_ids=_encode_ids(group.prompt_ids_P))


def _encode_chat(chat: Chat) -> teacher_pb2.ChatPrompt:
    return teacher_pb2.ChatPrompt(
        messages=[_encode_message(message) for message in chat.messages],
        tools=[object_text(tool) for tool in chat.tools],
        template_arguments=object_text(chat.template_arguments) if chat.template_arguments else "",
    )


def _encode_message(message: ChatMessage) -> teacher_pb2.ChatMessage:
    calls = [
        teacher_pb2.ToolCall(id=call.id, name=call.name, arguments=object_text(call.arguments))
        for call in message.tool_calls
    ]
    return teacher_pb2.ChatMessage(
        role=message.role,
        content=message.content,
        tool_calls=calls,
        tool_call_id=message.tool_call_id,
        name=message.name,
        reasoning_content=message.reasoning_content,
    )


def _encode_ids(ids: TokenArray) -> teacher_pb2.TokenIds:
    dtype = token_dtype_for(int(ids.max()) + 1)
    wire_dtype = teacher_pb2.TOKEN_DTYPE_U16 if dtype is TokenDtype.U16 else teacher_pb2.TOKEN_DTYPE_U32
    return teacher_pb2.TokenIds(data=encode_token_ids(ids, dtype), dtype=wire_dtype)


def _encode_candidates(ids_TC: TokenArray | None) -> teacher_pb2.CandidateIds | None:
    if ids_TC is None:
        return None
    return teacher_pb2.CandidateIds(ids=_encode_ids(ids_TC), num_per_position=ids_TC.shape[1])


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
    verify.verify_policy(answer.segmentation, asked=group.segmentation)
    verify.verify_echo("responses (their number)", sent=len(group.responses_T), answered=len(answer.responses))


def _decode_prompt_ids(answer: teacher_pb2.ScoreResponse, *, group: GroupRequest) -> TokenArray:
    """The prompt as the teacher read it: the answer's where it has one, else the request's own."""
    if not answer.HasField("prompt_ids"):
        if group.prompt_ids_P is None:
            raise CorruptAnswerError("prompt_ids is absent, though the prompt was sent as text or chat")
        return group.prompt_ids_P
    try:
        ids_P = decode_token_ids(answer.prompt_ids.data, answer.prompt_ids.dtype, field="prompt_ids")
    except WireError as error:
        raise CorruptAnswerError(str(error)) from error
    if not ids_P.size:
        raise CorruptAnswerError("prompt_ids is empty, though every prompt has a token")
    if isinstance(group.prompt, TeacherIds) and ids_P.tolist() != list(group.prompt.ids):
        raise CorruptAnswerError("prompt_ids are others than those sent, which were the teacher's own")
    return ids_P


def _decode_response(answer: teacher_pb2.ScoreResponse, *, index: int, group: GroupRequest) -> ResponseScores:
    scores, num_tokens = answer.responses[index], len(group.responses_T[index])
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
            )
        }
        entropies = decode_logprobs(scores.entropies, f32, field="entropies")
        candidates = decode_logprobs(scores.candidate_logprobs, answer.logprob_dtype, field="candidate_logprobs")
        teacher_ids_M, teacher_rows_N = _decode_teacher_side(scores)
    except WireError as error:
        raise CorruptAnswerError(f"responses[{index}].{error}") from error
    positions_N = np.flatnonzero(status_T == PositionStatus.OK)
    N, K = len(positions_N), answer.top_k
    sized = {"support_ids": (support_ids.size, N * K), "support_logprobs": (support.size, N * K)}
    sized |= {name: (column.size, N) for name, column in flat.items()}
    for name, (size, expected) in sized.items():
        if size != expected:
            raise verify.corrupt(index, name, f"holds {size} entries instead of {expected} (N={N}, K={K})")
    named_TC = group.candidate_ids_TC[index]
    candidate_ids_NC = None if named_TC is None else named_TC[positions_N]
    return ResponseScores(
        status_T=status_T,
        positions_N=positions_N,
        support_ids_NK=support_ids.reshape(N, K),
        support_logprobs_NK=support.reshape(N, K),
        sampled_logprobs_N=flat["sampled_logprobs"],
        log_tail_mass_N=flat["log_tail_mass"],
        entropies_N=_entropies(entropies, num_rows=N, index=index),
        teacher_ids_M=teacher_ids_M,
        teacher_rows_N=teacher_rows_N,
        unmapped_mass=scores.unmapped_mass,
        candidate_ids_NC=candidate_ids_NC,
        candidate_logprobs_NC=_shape_candidates(candidates, candidate_ids_NC, index=index),
    )


def _entropies(entropies_N: LogprobArray, *, num_rows: int, index: int) -> LogprobArray | None:
    """One for each row; None where there are rows and no entropies: the teacher does not compute them."""
    if num_rows and not entropies_N.size:
        return None
    if entropies_N.size != num_rows:
        raise verify.corrupt(index, "entropies", f"holds {entropies_N.size} entries instead of {num_rows}, or none")
    return entropies_N


def _shape_candidates(
    logprobs: LogprobArray, candidate_ids_NC: TokenArray | None, *, index: int
) -> LogprobArray | None:
    """The logprobs of the ids that were named, and of no others; None where none were."""
    num_named = 0 if candidate_ids_NC is None else candidate_ids_NC.size
    if logprobs.size != num_named:
        message = f"holds {logprobs.size} entries instead of {num_named}, one for each id that was named"
        raise verify.corrupt(index, "candidate_logprobs", message)
    return None if candidate_ids_NC is None else logprobs.reshape(candidate_ids_NC.shape)


def _decode_teacher_side(
    scores: teacher_pb2.ResponseScores,
) -> tuple[TokenArray | None, npt.NDArray[np.int64] | None]:
    """What the teacher read in place of the response, and each row's place in it; None where it is absent."""
    ids_M = rows_N = None
    if scores.HasField("teacher_ids"):
        ids_M = decode_token_ids(scores.teacher_ids.data, scores.teacher_ids.dtype, field="teacher_ids")
    if scores.teacher_rows or ids_M is not None:
        rows_N = decode_token_ids(scores.teacher_rows, TokenDtype.U32, field="teacher_rows")
    return ids_M, rows_N
