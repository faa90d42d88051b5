"""Turns a ScoreRequest into a ScoreCall. What is malformed is told by field; no teacher is looked at."""

# T = tokens of a response, C = candidates per position

from __future__ import annotations

import numpy as np
from preceptor.v1 import teacher_pb2 as pb
from preceptor.wire import LogprobDtype, PackedTokenArray, SegmentationPolicy, WireError, decode_score_mask

from preceptor_server.calls import AskedResponse, Prompt, ScoreCall, StudentIds, TeacherIds, Text
from preceptor_server.edges.grpc.chat import to_sent_chat
from preceptor_server.edges.grpc.token_ids import as_invalid, decode_ids, view_ids
from preceptor_server.errors import InvalidRequestError


def decode_score_request(request: pb.ScoreRequest) -> ScoreCall:
    """Raises InvalidRequestError with the field's name."""
    if request.logprob_dtype not in pb.LogprobDtype.values():
        raise InvalidRequestError("logprob_dtype", f"{request.logprob_dtype} is unknown: use F16 (1) or F32 (2)")
    return ScoreCall(
        request_id=request.request_id,
        teacher=request.teacher,
        adapter=request.adapter,
        tokenizer_id=request.tokenizer_id,
        prompt=_decode_prompt(request.prompt),
        responses=tuple(
            _decode_response(response, f"responses[{index}]") for index, response in enumerate(request.responses)
        ),
        top_k=request.top_k,
        temperature=request.temperature,
        logprob_dtype=LogprobDtype(request.logprob_dtype or LogprobDtype.F16),
        batch_invariant=request.batch_invariant,
        segmentation=_decode_segmentation(request.segmentation),
        paper_token_ids=tuple(request.paper_token_ids),
    )


def _decode_segmentation(segmentation: int) -> SegmentationPolicy | None:
    if segmentation not in pb.SegmentationPolicy.values():
        known = ", ".join(f"{policy.name} ({policy.value})" for policy in SegmentationPolicy)
        raise InvalidRequestError("segmentation", f"{segmentation} is unknown: use {known}")
    return SegmentationPolicy(segmentation) if segmentation else None


def _decode_prompt(prompt: pb.Prompt) -> Prompt:
    match prompt.WhichOneof("kind"):
        case "student_ids":
            return StudentIds(ids_P=decode_ids(prompt.student_ids, "prompt.student_ids"))
        case "teacher_ids":
            return TeacherIds(ids_P=decode_ids(prompt.teacher_ids, "prompt.teacher_ids"))
        case "text":
            return Text(text=prompt.text.text, omit_special_tokens=prompt.text.omit_special_tokens)
        case "chat":
            return to_sent_chat(prompt.chat)
        case _:
            raise InvalidRequestError("prompt", "is missing: set one of student_ids, teacher_ids, text, chat")


def _decode_response(response: pb.Response, field: str) -> AskedResponse:
    ids_T = decode_ids(response.ids, f"{field}.ids")
    try:
        mask_T = decode_score_mask(response.score_mask, num_tokens=len(ids_T), field=f"{field}.score_mask")
    except WireError as error:
        raise as_invalid(error) from error
    candidate_ids_TC = None
    if response.HasField("candidates"):
        candidate_ids_TC = _decode_candidates(response.candidates, f"{field}.candidates", num_tokens=len(ids_T))
    return AskedResponse(ids_T=ids_T, score_mask_T=mask_T, candidate_ids_TC=candidate_ids_TC)


def _decode_candidates(candidates: pb.CandidateIds, field: str, *, num_tokens: int) -> PackedTokenArray:
    """[T, C], as the message packs them."""
    num_per_position = candidates.num_per_position
    if not num_per_position:  # outside the limit, which is the teacher's to tell
        return np.zeros((num_tokens, 0), np.int64)
    ids = view_ids(candidates.ids, f"{field}.ids")
    if len(ids) != num_tokens * num_per_position:
        raise InvalidRequestError(
            f"{field}.ids",
            f"holds {len(ids)} ids for {num_tokens} tokens: send num_per_position={num_per_position} for each token, "
            f"{num_tokens * num_per_position} in all",
            reason="MALFORMED_COLUMN",
        )
    return ids.reshape(num_tokens, num_per_position)
