"""A body of /v1/topk as the ScoreRequest that gRPC would have carried, so that one validation serves both."""

# T = tokens of a response, C = candidates per position

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from preceptor.v1 import teacher_pb2 as pb
from preceptor.wire import LogprobDtype, SegmentationPolicy, TokenArray, TokenDtype, encode_token_ids

from preceptor_server.chat_prompt import render_chat
from preceptor_server.errors import InvalidRequestError, NotYetImplementedError
from preceptor_server.hosted import HostedTeacher
from preceptor_server.http.chat import num_characters, to_chat
from preceptor_server.http.next_token import id_to_stand_in
from preceptor_server.http.requests import AlignRequest, PromptBody, ResponseBody, TextOrIds, TopkRequest
from preceptor_server.http.students import Student
from preceptor_server.serving import Notes

_CHARACTERS_PER_TOKEN = 64
"""No text has as many."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Translated:
    """A request for the wire, and what the wire does not carry."""

    request: pb.ScoreRequest
    notes: Notes
    fields: dict[str, str]
    """The body's names of the request's fields that have others there than FIELDS says; longer ones first."""


def translate_topk(body: TopkRequest, teacher: HostedTeacher, student: Student) -> Translated:
    """Raises InvalidRequestError or NotYetImplementedError where it cannot be said on the wire at all."""
    check_texts(body.prompt, body.responses, teacher)
    request = pb.ScoreRequest(
        request_id=body.request_id,
        teacher=body.teacher,
        adapter=body.adapter,
        tokenizer_id=student.tokenizer_id,
        top_k=body.top_k,
        temperature=body.temperature,
        logprob_dtype=pb.LogprobDtype.ValueType(LogprobDtype[body.logprob_dtype.upper()]),
        batch_invariant=body.batch_invariant,
        segmentation=segmentation_of(body),
        paper_token_ids=body.paper_token_ids,
    )
    if body.responses:
        return _translate_responses(body, request, student)
    if body.positions == "all":
        return _translate_prompt_itself(body.prompt, request, teacher, student)
    request.prompt.CopyFrom(to_prompt(body.prompt))
    stand_in = id_to_stand_in(request, teacher)
    request.responses.append(pb.Response(ids=to_ids([stand_in])))
    return Translated(request=request, notes=Notes(is_next=True), fields={"responses[0]": "prompt"})


def check_texts(prompt: PromptBody | None, responses: Sequence[TextOrIds], teacher: HostedTeacher) -> None:
    """Raises InvalidRequestError where a text is so long that to cut it would be work for nothing."""
    if prompt is not None:
        _check_text(len(prompt.text), "prompt.text", teacher)
        _check_text(num_characters(to_chat(prompt)), "prompt.messages", teacher)
    for index, response in enumerate(responses):
        _check_text(len(response.text), f"responses[{index}].text", teacher)


def _check_text(num_characters: int, field: str, teacher: HostedTeacher) -> None:
    context = teacher.info.max_model_len
    if num_characters > context * _CHARACTERS_PER_TOKEN:
        raise InvalidRequestError(
            field,
            f"has {num_characters:,} characters, far more than the teacher's max_model_len={context} tokens hold",
            reason="BEYOND_CONTEXT",
        )


def segmentation_of(body: TopkRequest | AlignRequest) -> pb.SegmentationPolicy.ValueType:
    """As the wire numbers it."""
    if body.segmentation is None:
        return pb.SEGMENTATION_POLICY_UNSPECIFIED
    return pb.SegmentationPolicy.ValueType(SegmentationPolicy[body.segmentation.upper()])


def to_prompt(body: PromptBody) -> pb.Prompt:
    """The prompt as the wire carries it."""
    if body.text:
        return pb.Prompt(text=pb.TextPrompt(text=body.text, omit_special_tokens=body.omit_special_tokens))
    if body.messages:
        return pb.Prompt(chat=to_chat(body))
    if body.student_ids:
        return pb.Prompt(student_ids=to_ids(body.student_ids))
    return pb.Prompt(teacher_ids=to_ids(body.teacher_ids))


def to_ids(ids: list[int] | TokenArray) -> pb.TokenIds:
    """As a column; whether they are tokens is seen when it is decoded."""
    return pb.TokenIds(data=encode_token_ids(np.asarray(ids, np.int64), TokenDtype.U32), dtype=pb.TOKEN_DTYPE_U32)


def ids_of(body: TextOrIds, student: Student, *, field: str) -> TokenArray:
    """A response's ids, cut where it is text."""
    return np.asarray(body.ids, np.int64) if body.ids else student.encode(body.text, field=f"{field}.text")


def _translate_responses(body: TopkRequest, request: pb.ScoreRequest, student: Student) -> Translated:
    if body.positions is not None:
        raise InvalidRequestError("positions", "belongs to requests without responses: leave it out")
    request.prompt.CopyFrom(to_prompt(body.prompt))
    fields: dict[str, str] = {}
    for index, response in enumerate(body.responses):
        field = f"responses[{index}]"
        request.responses.append(_to_response(response, student, field=field))
        if response.text:
            fields[f"{field}.ids"] = f"{field}.text"
    logprobs = tuple(tuple(response.student_logprobs) or None for response in body.responses)
    return Translated(request=request, notes=Notes(student_logprobs=logprobs), fields=fields)


def _to_response(body: ResponseBody, student: Student, *, field: str) -> pb.Response:
    ids_T = ids_of(body, student, field=field)
    _check_length(body.student_logprobs, len(ids_T), f"{field}.student_logprobs")
    response = pb.Response(ids=to_ids(ids_T), score_mask=bytes(body.score_mask))
    if body.candidate_ids:
        _check_length(body.candidate_ids, len(ids_T), f"{field}.candidate_ids")
        response.candidates.CopyFrom(_to_candidates(body.candidate_ids, field=f"{field}.candidate_ids"))
    return response


def _to_candidates(candidate_ids_TC: list[list[int]], *, field: str) -> pb.CandidateIds:
    num_per_position = len(candidate_ids_TC[0])
    for position, ids in enumerate(candidate_ids_TC):
        if len(ids) != num_per_position:
            raise InvalidRequestError(
                field,
                f"has {num_per_position} ids at position 0 and {len(ids)} at {position}: send as many at each",
            )
    flat = [token_id for ids in candidate_ids_TC for token_id in ids]
    return pb.CandidateIds(ids=to_ids(flat), num_per_position=num_per_position)


def _check_length(values: list[float] | list[list[int]], num_tokens: int, field: str) -> None:
    if values and len(values) != num_tokens:
        raise InvalidRequestError(field, f"has {len(values)} entries for {num_tokens} tokens: send one per token")


def _translate_prompt_itself(
    body: PromptBody, request: pb.ScoreRequest, teacher: HostedTeacher, student: Student
) -> Translated:
    """The prompt's first token as the prompt, the others as the response."""
    if body.student_ids:
        ids, kind = np.asarray(body.student_ids, np.int64), "student_ids"
    else:
        if student.tokenizer_id:
            raise InvalidRequestError(
                "tokenizer",
                'with positions "all" a prompt that is not student_ids is scored in the teacher\'s tokens: leave '
                "tokenizer out, or send student_ids",
            )
        ids, kind = _teacher_ids(body, teacher), "teacher_ids"
    if len(ids) < 2:
        raise InvalidRequestError("prompt", 'is a single token, and positions "all" begins with the second')
    getattr(request.prompt, kind).CopyFrom(to_ids(ids[:1]))
    request.responses.append(pb.Response(ids=to_ids(ids[1:])))
    return Translated(request=request, notes=Notes(), fields={"responses[0]": "prompt", f"prompt.{kind}": "prompt"})


def _teacher_ids(body: PromptBody, teacher: HostedTeacher) -> TokenArray:
    if body.teacher_ids:
        return np.asarray(body.teacher_ids, np.int64)
    if teacher.tokenizer is None:
        raise NotYetImplementedError("prompt", "this teacher has no tokenizer: send the prompt as ids")
    if body.messages:
        return render_chat(to_chat(body), teacher.tokenizer)
    return teacher.tokenizer.encode(body.text, add_special_tokens=not body.omit_special_tokens, field="prompt.text")
