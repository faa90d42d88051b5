"""A body of /v1/topk as the ScoreCall that gRPC would have asked for, so that one validation serves both."""

# T = tokens of a response, C = candidates per position

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from preceptor.wire import LogprobDtype, SegmentationPolicy, TokenArray

from preceptor_server.calls import AskedResponse, Prompt, ScoreCall, StudentIds, TeacherIds, Text
from preceptor_server.edges.http.chat import to_chat
from preceptor_server.edges.http.next_token import placeholder_id
from preceptor_server.edges.http.requests import AlignRequest, PromptBody, ResponseBody, TextOrIds, TopkRequest
from preceptor_server.edges.http.students import Student
from preceptor_server.errors import InvalidRequestError
from preceptor_server.hosted import HostedTeacher
from preceptor_server.preparing import reader_of
from preceptor_server.serving import Notes

_CHARACTERS_PER_TOKEN = 64
"""No text has as many."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Translated:
    """A call, and what it does not carry."""

    call: ScoreCall
    notes: Notes
    fields: dict[str, str]
    """The body's names of the wire's fields that have others there than FIELDS says; longer ones first."""


def translate_topk(
    body: TopkRequest, teacher: HostedTeacher, student: Student, *, own_prompt_ids: TokenArray | None = None
) -> Translated:
    """Raises InvalidRequestError or NotYetImplementedError where it cannot be asked at all. `own_prompt_ids` is what
    `read_own_prompt` returned."""
    if body.responses:
        return _translate_responses(body, student)
    if body.positions == "all":
        return _translate_prompt_itself(body, student, own_prompt_ids)
    token_id = placeholder_id(student.tokenizer_id, teacher, paper_token_ids=body.paper_token_ids)
    call = _call(body, student, prompt=to_prompt(body.prompt), responses=[response_of(np.array([token_id]))])
    return Translated(call=call, notes=Notes(is_next=True), fields={"responses[0]": "prompt"})


async def read_own_prompt(body: TopkRequest, teacher: HostedTeacher, *, caller_key: str) -> TokenArray | None:
    """With positions "all" the prompt in the teacher's ids, of which all but the first are scored; else None. Raises
    what the teacher's reader raises."""
    prompt = body.prompt
    if body.responses or body.positions != "all" or prompt.student_ids:
        return None
    if prompt.teacher_ids:
        return np.asarray(prompt.teacher_ids, np.int64)
    reader, room_tokens = reader_of(teacher, "prompt"), teacher.info.max_model_len
    if prompt.messages:
        return await reader.read_chat(to_chat(prompt), room_tokens=room_tokens, caller_key=caller_key)
    return await reader.read_text(
        prompt.text,
        add_special_tokens=not prompt.omit_special_tokens,
        room_tokens=room_tokens,
        caller_key=caller_key,
        field="prompt.text",
    )


def _call(body: TopkRequest, student: Student, *, prompt: Prompt, responses: Sequence[AskedResponse]) -> ScoreCall:
    return ScoreCall(
        request_id=body.request_id,
        teacher=body.teacher,
        adapter=body.adapter,
        tokenizer_id=student.tokenizer_id,
        prompt=prompt,
        responses=tuple(responses),
        top_k=body.top_k,
        temperature=body.temperature,
        logprob_dtype=LogprobDtype[body.logprob_dtype.upper()],
        batch_invariant=body.batch_invariant,
        segmentation=segmentation_of(body),
        paper_token_ids=tuple(body.paper_token_ids),
    )


def check_texts(prompt: PromptBody | None, responses: Sequence[TextOrIds], teacher: HostedTeacher) -> None:
    """Raises InvalidRequestError where a text is so long that to cut it would be work for nothing."""
    if prompt is not None:
        _check_text(len(prompt.text), "prompt.text", teacher)
        _check_text(to_chat(prompt).num_characters, "prompt.messages", teacher)
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


def segmentation_of(body: TopkRequest | AlignRequest) -> SegmentationPolicy | None:
    """None: the server chooses."""
    return None if body.segmentation is None else SegmentationPolicy[body.segmentation.upper()]


def to_prompt(body: PromptBody) -> Prompt:
    """The prompt as the core takes it."""
    if body.text:
        return Text(text=body.text, omit_special_tokens=body.omit_special_tokens)
    if body.messages:
        return to_chat(body)
    if body.student_ids:
        return StudentIds(ids_P=np.asarray(body.student_ids, np.int64))
    return TeacherIds(ids_P=np.asarray(body.teacher_ids, np.int64))


def response_of(ids_T: TokenArray) -> AskedResponse:
    """A response of which all is scored."""
    return AskedResponse(ids_T=ids_T, score_mask_T=np.ones(len(ids_T), np.bool_))


def ids_of(body: TextOrIds, student: Student, *, field: str) -> TokenArray:
    """A response's ids, cut where it is text."""
    return np.asarray(body.ids, np.int64) if body.ids else student.encode(body.text, field=f"{field}.text")


def _translate_responses(body: TopkRequest, student: Student) -> Translated:
    if body.positions is not None:
        raise InvalidRequestError("positions", "belongs to requests without responses: leave it out")
    responses = [
        _to_response(response, student, field=f"responses[{index}]") for index, response in enumerate(body.responses)
    ]
    fields = {
        f"responses[{index}].ids": f"responses[{index}].text"
        for index, response in enumerate(body.responses)
        if response.text
    }
    logprobs = tuple(tuple(response.student_logprobs) or None for response in body.responses)
    call = _call(body, student, prompt=to_prompt(body.prompt), responses=responses)
    return Translated(call=call, notes=Notes(student_logprobs=logprobs), fields=fields)


def _to_response(body: ResponseBody, student: Student, *, field: str) -> AskedResponse:
    response = response_of(ids_of(body, student, field=field))
    num_tokens = len(response.ids_T)
    _check_length(body.student_logprobs, num_tokens, f"{field}.student_logprobs")
    if body.score_mask:
        _check_mask(body.score_mask, num_tokens, f"{field}.score_mask")
        response = replace(response, score_mask_T=np.asarray(body.score_mask, np.bool_))
    if body.candidate_ids:
        _check_length(body.candidate_ids, num_tokens, f"{field}.candidate_ids")
        candidates_TC = _to_candidates(body.candidate_ids, field=f"{field}.candidate_ids")
        response = replace(response, candidate_ids_TC=candidates_TC)
    return response


def _to_candidates(candidate_ids_TC: list[list[int]], *, field: str) -> TokenArray:
    num_per_position = len(candidate_ids_TC[0])
    for position, ids in enumerate(candidate_ids_TC):
        if len(ids) != num_per_position:
            raise InvalidRequestError(
                field,
                f"has {num_per_position} ids at position 0 and {len(ids)} at {position}: send as many at each",
            )
    return np.asarray(candidate_ids_TC, np.int64)


def _check_mask(mask: list[bool], num_tokens: int, field: str) -> None:
    if len(mask) != num_tokens:
        raise InvalidRequestError(
            field,
            f"holds {len(mask)} entries for {num_tokens} tokens: send one per token, or none",
            reason="MALFORMED_COLUMN",
        )


def _check_length(values: list[float] | list[list[int]], num_tokens: int, field: str) -> None:
    if values and len(values) != num_tokens:
        raise InvalidRequestError(field, f"has {len(values)} entries for {num_tokens} tokens: send one per token")


def _translate_prompt_itself(body: TopkRequest, student: Student, own_prompt_ids: TokenArray | None) -> Translated:
    """The prompt's first token as the prompt, the others as the response."""
    prompt: Prompt
    if body.prompt.student_ids:
        ids = np.asarray(body.prompt.student_ids, np.int64)
        prompt, kind = StudentIds(ids_P=ids[:1]), "student_ids"
    else:
        if student.tokenizer_id:
            raise InvalidRequestError(
                "tokenizer",
                'with positions "all" a prompt that is not student_ids is scored in the teacher\'s tokens: leave '
                "tokenizer out, or send student_ids",
            )
        assert own_prompt_ids is not None, "it was read before"
        ids = own_prompt_ids
        prompt, kind = TeacherIds(ids_P=ids[:1]), "teacher_ids"
    if len(ids) < 2:
        raise InvalidRequestError("prompt", 'is a single token, and positions "all" begins with the second')
    call = _call(body, student, prompt=prompt, responses=[response_of(ids[1:])])
    return Translated(call=call, notes=Notes(), fields={"responses[0]": "prompt", f"prompt.{kind}": "prompt"})
