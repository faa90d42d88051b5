"""Turns a ScoreRequest into a validated ScoreCall. Everything a caller can get wrong is told here, by field."""

# P = prompt tokens, T = tokens of a response, C = candidates per position

from __future__ import annotations

import asyncio
import math
from typing import TYPE_CHECKING

import numpy as np
from preceptor.v1 import teacher_pb2 as pb
from preceptor.wire import (
    LogprobDtype,
    SegmentationPolicy,
    TokenArray,
    WireError,
    decode_score_mask,
)

from preceptor_server.alignment.prompts import read_prompt
from preceptor_server.alignment.types import Alignment
from preceptor_server.candidates import decode_candidates
from preceptor_server.chat_prompt import MESSAGES, render_chat
from preceptor_server.errors import InvalidRequestError, NotYetImplementedError, UnknownTeacherError
from preceptor_server.hosted import HostedTeacher
from preceptor_server.segmentation import choose_alignment
from preceptor_server.token_ids import as_invalid, decode_ids
from preceptor_server.types import ResponseToScore, ScoreCall, ScoreGroup

if TYPE_CHECKING:
    from preceptor_server.alignment.teacher_tokenizer import TeacherTokenizer  # imports transformers

MAX_REQUEST_ID_LENGTH = 128
MAX_SHOWN_NAME = 128
"""Characters of a caller's own words that an error repeats: it travels in metadata, whose size is bounded."""
MAX_SHOWN_ADAPTERS = 16
UNKNOWN_ADAPTER = "UNKNOWN_ADAPTER"
_BYTES_PER_POSITION = 4 + 4 + 4 + 1
"""Sampled logprob, tail mass, entropy, status."""
_BYTES_PER_READING = 4 + 4
"""A teacher's token, and the index of a row."""


async def decode_off_loop(request: pb.ScoreRequest, teacher: HostedTeacher) -> ScoreCall:
    """The same as decode_score_request, in a thread where a tokenizer or a chat template has to run: neither is bounded
    by a moment, and other calls are not to wait for them."""
    is_cut = request.prompt.WhichOneof("kind") in ("text", "chat")
    is_strangers = request.tokenizer_id not in ("", teacher.tokenizer_id)
    if is_cut or is_strangers:
        return await asyncio.to_thread(decode_score_request, request, teacher)
    return decode_score_request(request, teacher)


def decode_score_request(request: pb.ScoreRequest, teacher: HostedTeacher) -> ScoreCall:
    """Raises InvalidRequestError (unknown teachers and tokenizers among them) or NotYetImplementedError, each with the
    field's name."""
    _check_names(request, teacher)
    _check_numbers(request, teacher)
    alignment, segmentation = choose_alignment(request, teacher)
    sent_ids, prompt_ids = _decode_prompt(request, teacher, alignment)
    if not request.responses:
        raise InvalidRequestError("responses", "a group needs at least one response")
    if len(request.responses) > teacher.limits.max_responses:
        raise InvalidRequestError(
            "responses",
            f"{len(request.responses)} exceed max_responses={teacher.limits.max_responses}: split them",
        )
    num_ids = alignment.pairing.student.size if alignment else teacher.info.vocabulary_size
    call = ScoreCall(
        request_id=request.request_id,
        tokenizer_id=request.tokenizer_id or teacher.tokenizer_id,
        prompt_ids_P=prompt_ids,
        sent_prompt_ids=sent_ids,
        returns_prompt_ids=request.prompt.WhichOneof("kind") in ("text", "chat")
        or not np.array_equal(sent_ids, prompt_ids),
        responses=tuple(
            _decode_response(request, index, num_ids=num_ids, segmentation=segmentation, teacher=teacher)
            for index in range(len(request.responses))
        ),
        alignment=alignment,
        segmentation=segmentation,
        paper_token_ids=tuple(request.paper_token_ids),
        top_k=request.top_k,
        temperature=request.temperature,
        batch_invariant=request.batch_invariant,
        logprob_dtype=LogprobDtype(request.logprob_dtype or LogprobDtype.F16),
        student_vocabulary_size=num_ids,
        adapter=request.adapter,
    )
    _check_masks(call)
    _check_lengths(call, teacher)
    _check_answer_size(call, teacher)
    return call


def check_teacher_name(name: str, teacher: HostedTeacher) -> None:
    """Raises UnknownTeacherError unless `name` is empty or this teacher's."""
    if name not in ("", teacher.name):
        raise UnknownTeacherError(
            "teacher",
            f"{name[:MAX_SHOWN_NAME]!r} is not hosted here: ask for {teacher.name!r}",
            reason="UNKNOWN_TEACHER",
        )


def check_adapter_name(name: str, teacher: HostedTeacher) -> None:
    """Raises UnknownTeacherError unless `name` is empty or that of an adapter which is loaded."""
    adapters = teacher.info.adapters
    if not name or name in adapters:
        return
    shown = [adapter[:MAX_SHOWN_NAME] for adapter in sorted(adapters)[:MAX_SHOWN_ADAPTERS]]
    more = f", and {len(adapters) - len(shown)} more" if len(adapters) > len(shown) else ""
    hosted = f"loaded are {', '.join(map(repr, shown))}{more}" if shown else "this server hosts none: leave it empty"
    raise UnknownTeacherError("adapter", f"{name[:MAX_SHOWN_NAME]!r} is not loaded: {hosted}", reason=UNKNOWN_ADAPTER)


def _check_names(request: pb.ScoreRequest, teacher: HostedTeacher) -> None:
    if len(request.request_id) > MAX_REQUEST_ID_LENGTH:
        raise InvalidRequestError("request_id", f"longer than {MAX_REQUEST_ID_LENGTH} characters")
    check_teacher_name(request.teacher, teacher)
    check_adapter_name(request.adapter, teacher)


def _check_numbers(request: pb.ScoreRequest, teacher: HostedTeacher) -> None:
    if not 1 <= request.top_k <= teacher.max_top_k:
        raise InvalidRequestError("top_k", f"{request.top_k} is outside [1, {teacher.max_top_k}]")
    if not math.isfinite(request.temperature) or request.temperature <= 0:
        raise InvalidRequestError("temperature", f"{request.temperature} is not a finite number above 0")
    if request.temperature != 1 and not teacher.info.applies_temperature:
        raise NotYetImplementedError("temperature", "this engine scores at temperature 1 only")
    if request.batch_invariant and not teacher.info.is_batch_invariant_on_request:
        raise NotYetImplementedError("batch_invariant", "this engine cannot promise it")
    if request.logprob_dtype not in pb.LogprobDtype.values():
        raise InvalidRequestError("logprob_dtype", f"{request.logprob_dtype} is unknown: use F16 (1) or F32 (2)")


def _decode_prompt(
    request: pb.ScoreRequest, teacher: HostedTeacher, alignment: Alignment | None
) -> tuple[TokenArray, TokenArray]:
    """The prompt as it was sent, and in the teacher's ids; where it was not sent as ids, both are the latter."""
    prompt = request.prompt
    kind = prompt.WhichOneof("kind")
    match kind:
        case "student_ids":
            sent_ids, ids = _decode_student_prompt(prompt.student_ids, teacher, alignment)
            _check_in_model(ids, "prompt.student_ids", teacher)
            return sent_ids, ids
        case "teacher_ids":
            ids = decode_ids(prompt.teacher_ids, "prompt.teacher_ids", num_ids=teacher.info.vocabulary_size)
        case "text":
            if not prompt.text.text:
                raise InvalidRequestError("prompt.text.text", "the prompt is empty")
            tokenizer = _tokenizer_of(teacher, "prompt.text")
            ids = tokenizer.encode(
                prompt.text.text, add_special_tokens=not prompt.text.omit_special_tokens, field="prompt.text.text"
            )
        case "chat":
            if not prompt.chat.messages:
                raise InvalidRequestError(MESSAGES, "the prompt is empty")
            ids = render_chat(prompt.chat, _tokenizer_of(teacher, "prompt.chat"))
        case _:
            raise InvalidRequestError("prompt", "is missing: set one of student_ids, teacher_ids, text, chat")
    _check_in_model(ids, "prompt.text.text" if kind == "text" else MESSAGES, teacher)
    return ids, ids


def _check_in_model(ids: TokenArray, field: str, teacher: HostedTeacher) -> None:
    """A tokenizer may know special tokens that its model has no row for, such as an image's."""
    size = teacher.info.vocabulary_size
    if (ids >= size).any():
        token_id = int(ids[np.argmax(ids >= size)])
        text = teacher.tokenizer.texts_of([token_id])[0] if teacher.tokenizer else ""
        raise InvalidRequestError(
            field,
            f"holds {text!r}, whose id {token_id} lies beyond the {size} tokens of the teacher's model: leave it out",
            reason="TOKEN_OUT_OF_RANGE",
        )


def _decode_student_prompt(
    sent: pb.TokenIds, teacher: HostedTeacher, alignment: Alignment | None
) -> tuple[TokenArray, TokenArray]:
    field = "prompt.student_ids"
    num_ids = alignment.pairing.student.size if alignment else teacher.info.vocabulary_size
    ids = decode_ids(sent, field, num_ids=num_ids)
    if alignment is None:
        return ids, ids
    assert teacher.aligner is not None, "an alignment comes from the teacher's aligner"
    tokenizer = _tokenizer_of(teacher, field)
    return ids, read_prompt(ids, alignment, tokenizer=tokenizer, segmenter=teacher.aligner.segmenter, field=field)


def _tokenizer_of(teacher: HostedTeacher, field: str) -> TeacherTokenizer:
    if teacher.tokenizer is None:
        raise NotYetImplementedError(field, "this teacher has no tokenizer: send the prompt as ids")
    return teacher.tokenizer


def _decode_response(
    request: pb.ScoreRequest, index: int, *, num_ids: int, segmentation: SegmentationPolicy, teacher: HostedTeacher
) -> ResponseToScore:
    response, field = request.responses[index], f"responses[{index}]"
    ids_T = decode_ids(response.ids, f"{field}.ids", num_ids=num_ids)
    try:
        mask_T = decode_score_mask(response.score_mask, num_tokens=len(ids_T), field=f"{field}.score_mask")
    except WireError as error:
        raise as_invalid(error) from error
    candidate_ids_TC = decode_candidates(
        response, field, num_tokens=len(ids_T), num_ids=num_ids, segmentation=segmentation, teacher=teacher
    )
    return ResponseToScore(ids_T=ids_T, score_mask_T=mask_T, candidate_ids_TC=candidate_ids_TC)


def _check_masks(call: ScoreCall) -> None:
    """A group of which nothing is to be scored asks whether its prompt can be read; in any other, each response has a
    token to score."""
    is_wanted = [bool(response.score_mask_T.any()) for response in call.responses]
    if any(is_wanted) and not all(is_wanted):
        raise InvalidRequestError(
            f"responses[{is_wanted.index(False)}].score_mask", "excludes every token: leave the response out"
        )


def _check_lengths(call: ScoreCall, teacher: HostedTeacher) -> None:
    """Where the teacher segments anew, its own count of a response's tokens is known, and checked, later."""
    num_prompt, context = len(call.prompt_ids_P), teacher.info.max_model_len
    if call.segmentation is SegmentationPolicy.CANONICAL:
        if num_prompt >= context:
            raise InvalidRequestError(
                "prompt",
                f"has {num_prompt} of the teacher's tokens, which leave no room in its max_model_len={context}",
                reason="BEYOND_CONTEXT",
            )
    else:
        lengths = [len(response.ids_T) for response in call.responses]
        longest = max(lengths)
        if num_prompt + longest > context:
            raise InvalidRequestError(
                f"responses[{lengths.index(longest)}].ids",
                f"prompt ({num_prompt}) + response ({longest}) exceed the teacher's max_model_len={context} tokens",
                reason="BEYOND_CONTEXT",
            )
    _check_num_tokens(num_prompt + sum(len(response.ids_T) for response in call.responses), teacher)


def check_group_tokens(group: ScoreGroup, teacher: HostedTeacher) -> None:
    """Raises InvalidRequestError where the teacher's own segmentation makes a group too large."""
    _check_num_tokens(group.num_tokens, teacher)


def _check_num_tokens(num_tokens: int, teacher: HostedTeacher) -> None:
    if num_tokens > teacher.limits.max_group_tokens:
        raise InvalidRequestError(
            "responses",
            f"the group has {num_tokens} tokens, above max_group_tokens={teacher.limits.max_group_tokens}: "
            "split its responses over several requests",
        )


def _check_answer_size(call: ScoreCall, teacher: HostedTeacher) -> None:
    num_positions = sum(len(response.ids_T) for response in call.responses)
    bytes_per_logprob = 2 if call.logprob_dtype is LogprobDtype.F16 else 4
    bytes_per_entry = (2 if call.student_vocabulary_size <= 1 << 16 else 4) + bytes_per_logprob
    num_candidates = sum(r.candidate_ids_TC.size for r in call.responses if r.candidate_ids_TC is not None)
    bytes_per_position = _BYTES_PER_POSITION + (_BYTES_PER_READING if call.alignment else 0)
    num_bytes = num_positions * (call.top_k * bytes_per_entry + bytes_per_position)
    num_bytes += num_candidates * bytes_per_logprob
    if num_bytes > teacher.limits.max_message_bytes:
        raise InvalidRequestError(
            "top_k",
            f"the answer would have {num_bytes} bytes, above max_message_bytes={teacher.limits.max_message_bytes}: "
            "send fewer responses at once, a smaller top_k, or fewer candidates",
            reason="ANSWER_TOO_LARGE",
        )
