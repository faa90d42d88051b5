"""Checks a ScoreCall against its teacher, and reads its prompt in the teacher's tokens.

Everything that a caller can get wrong about this teacher is told here, by the wire's field.
"""

# P = prompt tokens, T = tokens of a response, C = candidates per position

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from preceptor.wire import LogprobDtype, PackedTokenArray, SegmentationPolicy, TokenArray

from preceptor_server.alignment.sent_chat import SentChat
from preceptor_server.alignment.types import Alignment
from preceptor_server.calls import AskedResponse, ScoreCall, StudentIds, TeacherIds, Text
from preceptor_server.errors import InvalidRequestError, NotYetImplementedError, UnknownTeacherError
from preceptor_server.hosted import HostedTeacher
from preceptor_server.segmentation import choose_alignment
from preceptor_server.types import ResponseToScore, ScoreGroup

if TYPE_CHECKING:
    from preceptor_server.alignment.prompt_reader import PromptReader  # imports transformers

MAX_REQUEST_ID_LENGTH = 128
MAX_SHOWN_NAME = 128
"""Characters of a caller's own words that an error repeats: it travels in metadata, whose size is bounded."""
MAX_SHOWN_ADAPTERS = 16
UNKNOWN_ADAPTER = "UNKNOWN_ADAPTER"
MESSAGES = "prompt.chat.messages"
_TEXT = "prompt.text.text"
_BYTES_PER_POSITION = 4 + 4 + 4 + 1
"""Sampled logprob, tail mass, entropy, status."""
_BYTES_PER_READING = 4 + 4
"""A teacher's token, and the index of a row."""
_SMALL_BYTES = 64 * 1024
"""Calls up to this size are checked on the event loop."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PreparedCall:
    """A call that this teacher can answer: its prompt in the teacher's ids, and what the student's ids stand for."""

    call: ScoreCall
    tokenizer_id: str
    prompt_ids_P: TokenArray
    """In the teacher's ids."""
    sent_prompt_ids: TokenArray
    """The prompt as the call carried it; the teacher's ids where it came as text or chat."""
    returns_prompt_ids: bool
    """The caller cannot know the prompt's ids in the teacher's vocabulary."""
    responses: tuple[ResponseToScore, ...]
    """In the student's ids."""
    alignment: Alignment | None
    """None where the student's ids are the teacher's and are scored unchanged."""
    segmentation: SegmentationPolicy
    student_vocabulary_size: int


async def prepare_call(
    call: ScoreCall, teacher: HostedTeacher, *, caller_key: str = "", timeout_seconds: float | None = None
) -> PreparedCall:
    """Raises InvalidRequestError (unknown teachers and tokenizers among them) or NotYetImplementedError, each with the
    field's name, and what the workbench raises. `caller_key` is whose turn it takes there."""
    if len(call.request_id) > MAX_REQUEST_ID_LENGTH:
        raise InvalidRequestError("request_id", f"longer than {MAX_REQUEST_ID_LENGTH} characters")
    check_adapter_name(call.adapter, teacher)
    _check_numbers(call, teacher)
    _check_num_responses(call, teacher)
    alignment, segmentation = choose_alignment(call, teacher)
    room = _room_of_prompt(call, teacher, segmentation)
    turn = _Turn(caller_key=caller_key, timeout_seconds=timeout_seconds)
    sent_ids, prompt_ids = await _read_prompt(call, teacher, alignment, room_tokens=room, turn=turn)

    def checked(_: object = None) -> PreparedCall:
        return _checked(call, teacher, alignment, segmentation, sent_ids=sent_ids, prompt_ids=prompt_ids)

    if call.num_bytes <= _SMALL_BYTES:
        return checked()
    return await teacher.workbench.run(
        checked, caller_key=caller_key, num_bytes=call.num_bytes, timeout_seconds=timeout_seconds
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Turn:
    """Whose turn it is on the workbench, and for how long."""

    caller_key: str
    timeout_seconds: float | None


def _check_num_responses(call: ScoreCall, teacher: HostedTeacher) -> None:
    if not call.responses:
        raise InvalidRequestError("responses", "a group needs at least one response")
    if len(call.responses) > teacher.limits.max_responses:
        raise InvalidRequestError(
            "responses",
            f"{len(call.responses)} exceed max_responses={teacher.limits.max_responses}: split them",
        )


def _room_of_prompt(call: ScoreCall, teacher: HostedTeacher, segmentation: SegmentationPolicy) -> int:
    """Tokens that the prompt may have. Where the teacher segments anew, its own count of a response's tokens is known,
    and checked, later."""
    num_response = 1
    if segmentation is not SegmentationPolicy.CANONICAL:
        num_response = max(len(response.ids_T) for response in call.responses)
    return teacher.info.max_model_len - num_response


def _checked(
    call: ScoreCall,
    teacher: HostedTeacher,
    alignment: Alignment | None,
    segmentation: SegmentationPolicy,
    *,
    sent_ids: TokenArray,
    prompt_ids: TokenArray,
) -> PreparedCall:
    """What takes as long as the arrays are large."""
    num_ids = alignment.pairing.student.size if alignment else teacher.info.vocabulary_size
    prepared = PreparedCall(
        call=call,
        tokenizer_id=call.tokenizer_id or teacher.tokenizer_id,
        prompt_ids_P=prompt_ids,
        sent_prompt_ids=sent_ids,
        returns_prompt_ids=isinstance(call.prompt, Text | SentChat) or not np.array_equal(sent_ids, prompt_ids),
        responses=tuple(
            _check_response(one, f"responses[{index}]", num_ids=num_ids, segmentation=segmentation, teacher=teacher)
            for index, one in enumerate(call.responses)
        ),
        alignment=alignment,
        segmentation=segmentation,
        student_vocabulary_size=num_ids,
    )
    _check_masks(prepared)
    _check_lengths(prepared, teacher)
    _check_answer_size(prepared, teacher)
    return prepared


def check_adapter_name(name: str, teacher: HostedTeacher) -> None:
    """Raises UnknownTeacherError unless `name` is empty or that of an adapter which is loaded."""
    adapters = teacher.info.adapters
    if not name or name in adapters:
        return
    shown = [adapter[:MAX_SHOWN_NAME] for adapter in sorted(adapters)[:MAX_SHOWN_ADAPTERS]]
    more = f", and {len(adapters) - len(shown)} more" if len(adapters) > len(shown) else ""
    hosted = f"loaded are {', '.join(map(repr, shown))}{more}" if shown else "this server hosts none: leave it empty"
    raise UnknownTeacherError("adapter", f"{name[:MAX_SHOWN_NAME]!r} is not loaded: {hosted}", reason=UNKNOWN_ADAPTER)


def check_ids(ids: PackedTokenArray, field: str, *, num_ids: int) -> None:
    """Raises InvalidRequestError where there are none, or one is outside [0, num_ids)."""
    if not ids.size:
        raise InvalidRequestError(field, "is empty: at least one token is needed", reason="EMPTY")
    if int(ids.max()) < num_ids and int(ids.min()) >= 0:
        return
    flat = ids.ravel()
    place = int(np.argmax((flat >= num_ids) | (flat < 0)))
    raise InvalidRequestError(
        field,
        f"token id {flat[place]} at position {place} is outside the vocabulary [0, {num_ids})",
        reason="TOKEN_OUT_OF_RANGE",
    )


def check_group_tokens(group: ScoreGroup, teacher: HostedTeacher) -> None:
    """Raises InvalidRequestError where the teacher's own segmentation makes a group too large."""
    _check_num_tokens(group.num_tokens, teacher)


def reader_of(teacher: HostedTeacher, field: str) -> PromptReader:
    """What reads the teacher's prompts. Raises NotYetImplementedError where it has no tokenizer."""
    if teacher.reader is None:
        raise NotYetImplementedError(field, "this teacher has no tokenizer: send the prompt as ids")
    return teacher.reader


def _check_numbers(call: ScoreCall, teacher: HostedTeacher) -> None:
    if not 1 <= call.top_k <= teacher.max_top_k:
        raise InvalidRequestError("top_k", f"{call.top_k} is outside [1, {teacher.max_top_k}]")
    if not math.isfinite(call.temperature) or call.temperature <= 0:
        raise InvalidRequestError("temperature", f"{call.temperature} is not a finite number above 0")
    if call.temperature != 1 and not teacher.info.applies_temperature:
        raise NotYetImplementedError("temperature", "this engine scores at temperature 1 only")
    if call.batch_invariant and not teacher.info.is_batch_invariant_on_request:
        raise NotYetImplementedError("batch_invariant", "this engine cannot promise it")


async def _read_prompt(
    call: ScoreCall, teacher: HostedTeacher, alignment: Alignment | None, *, room_tokens: int, turn: _Turn
) -> tuple[TokenArray, TokenArray]:
    """The prompt as it was sent, and in the teacher's ids; where it was not sent as ids, both are the latter."""
    match call.prompt:
        case StudentIds(ids_P=sent_ids):
            ids = await _read_student_prompt(sent_ids, teacher, alignment, room_tokens=room_tokens, turn=turn)
            _check_in_model(ids, "prompt.student_ids", teacher)
            return sent_ids, ids
        case TeacherIds(ids_P=ids):
            check_ids(ids, "prompt.teacher_ids", num_ids=teacher.info.vocabulary_size)
            return ids, ids
        case Text() as text:
            if not text.text:
                raise InvalidRequestError(_TEXT, "the prompt is empty")
            ids = await reader_of(teacher, "prompt.text").read_text(
                text.text,
                add_special_tokens=not text.omit_special_tokens,
                room_tokens=room_tokens,
                caller_key=turn.caller_key,
                timeout_seconds=turn.timeout_seconds,
                field=_TEXT,
            )
            _check_in_model(ids, _TEXT, teacher)
            return ids, ids
        case SentChat() as chat:
            ids = await reader_of(teacher, "prompt.chat").read_chat(
                chat, room_tokens=room_tokens, caller_key=turn.caller_key, timeout_seconds=turn.timeout_seconds
            )
            _check_in_model(ids, MESSAGES, teacher)
            return ids, ids


async def _read_student_prompt(
    sent_ids: TokenArray, teacher: HostedTeacher, alignment: Alignment | None, *, room_tokens: int, turn: _Turn
) -> TokenArray:
    field = "prompt.student_ids"
    check_ids(sent_ids, field, num_ids=alignment.pairing.student.size if alignment else teacher.info.vocabulary_size)
    if alignment is None:
        return sent_ids
    return await reader_of(teacher, field).read_student_ids(
        sent_ids,
        alignment,
        room_tokens=room_tokens,
        caller_key=turn.caller_key,
        timeout_seconds=turn.timeout_seconds,
        field=field,
    )


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


def _check_response(
    response: AskedResponse, field: str, *, num_ids: int, segmentation: SegmentationPolicy, teacher: HostedTeacher
) -> ResponseToScore:
    check_ids(response.ids_T, f"{field}.ids", num_ids=num_ids)
    if response.candidate_ids_TC is not None:
        _check_candidates(response.candidate_ids_TC, f"{field}.candidates", num_ids, segmentation, teacher)
    return ResponseToScore(
        ids_T=response.ids_T, score_mask_T=response.score_mask_T, candidate_ids_TC=response.candidate_ids_TC
    )


def _check_candidates(
    ids_TC: PackedTokenArray, field: str, num_ids: int, segmentation: SegmentationPolicy, teacher: HostedTeacher
) -> None:
    if not teacher.info.scores_candidates:
        raise NotYetImplementedError(field, "this engine scores no ids that the caller names: leave them out")
    # Ids that do not correspond one to one are scored by no other policy.
    if segmentation is SegmentationPolicy.CANONICAL:
        raise NotYetImplementedError(
            field,
            "they need ids that correspond one to one and the segmentation AS_IS, MASK or PAPER, and this request is "
            "scored by CANONICAL: leave them out, or set another segmentation where ids correspond",
        )
    num_per_position = ids_TC.shape[1]
    if not 1 <= num_per_position <= teacher.max_top_k:
        raise InvalidRequestError(
            f"{field}.num_per_position", f"{num_per_position} is outside [1, {teacher.max_top_k}]"
        )
    check_ids(ids_TC, f"{field}.ids", num_ids=num_ids)


def _check_masks(prepared: PreparedCall) -> None:
    """A group of which nothing is to be scored asks whether its prompt can be read; in any other, each response has a
    token to score."""
    is_wanted = [bool(response.score_mask_T.any()) for response in prepared.responses]
    if any(is_wanted) and not all(is_wanted):
        raise InvalidRequestError(
            f"responses[{is_wanted.index(False)}].score_mask", "excludes every token: leave the response out"
        )


def _check_lengths(prepared: PreparedCall, teacher: HostedTeacher) -> None:
    """Where the teacher segments anew, its own count of a response's tokens is known, and checked, later."""
    num_prompt, context = len(prepared.prompt_ids_P), teacher.info.max_model_len
    lengths = [len(response.ids_T) for response in prepared.responses]
    if prepared.segmentation is SegmentationPolicy.CANONICAL:
        if num_prompt >= context:
            raise InvalidRequestError(
                "prompt",
                f"has {num_prompt} of the teacher's tokens, which leave no room in its max_model_len={context}",
                reason="BEYOND_CONTEXT",
            )
    elif num_prompt + max(lengths) > context:
        longest = max(lengths)
        raise InvalidRequestError(
            f"responses[{lengths.index(longest)}].ids",
            f"prompt ({num_prompt}) + response ({longest}) exceed the teacher's max_model_len={context} tokens",
            reason="BEYOND_CONTEXT",
        )
    _check_num_tokens(num_prompt + sum(lengths), teacher)


def _check_num_tokens(num_tokens: int, teacher: HostedTeacher) -> None:
    if num_tokens > teacher.limits.max_group_tokens:
        raise InvalidRequestError(
            "responses",
            f"the group has {num_tokens} tokens, above max_group_tokens={teacher.limits.max_group_tokens}: "
            "split its responses over several requests",
        )


def _check_answer_size(prepared: PreparedCall, teacher: HostedTeacher) -> None:
    call = prepared.call
    num_positions = sum(len(response.ids_T) for response in prepared.responses)
    bytes_per_logprob = 2 if call.logprob_dtype is LogprobDtype.F16 else 4
    bytes_per_entry = (2 if prepared.student_vocabulary_size <= 1 << 16 else 4) + bytes_per_logprob
    num_candidates = sum(r.candidate_ids_TC.size for r in prepared.responses if r.candidate_ids_TC is not None)
    bytes_per_position = _BYTES_PER_POSITION + (_BYTES_PER_READING if prepared.alignment else 0)
    num_bytes = num_positions * (call.top_k * bytes_per_entry + bytes_per_position)
    num_bytes += num_candidates * bytes_per_logprob
    if num_bytes > teacher.limits.max_message_bytes:
        raise InvalidRequestError(
            "top_k",
            f"the answer would have {num_bytes} bytes, above max_message_bytes={teacher.limits.max_message_bytes}: "
            "send fewer responses at once, a smaller top_k, or fewer candidates",
            reason="ANSWER_TOO_LARGE",
        )
