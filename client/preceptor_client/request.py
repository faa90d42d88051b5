"""Checks what a caller wants scored, so that a mistake costs no round trip. Knows nothing of protobuf or of gRPC.

Fields are named as the server names them, by the request's proto path.
"""

# P = prompt tokens, T = tokens of a response, C = candidates per position

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Required, TypedDict

import numpy as np
import numpy.typing as npt
from preceptor.chat import MAX_TOOLS
from preceptor.json_values import Json, object_text
from preceptor.wire import LogprobDtype, SegmentationPolicy, TokenArray

from preceptor_client.errors import InvalidRequestError
from preceptor_client.types import Chat, Prompt, StudentIds, TeacherIds, Text

TokenSequence = Sequence[int] | npt.NDArray[np.integer]
"""Token ids as callers hold them: a list, or an array of any integer dtype."""
ScoreMask = Sequence[bool] | Sequence[int] | npt.NDArray[np.bool_] | npt.NDArray[np.integer]
"""One entry per response token: true or 1 = score it, false or 0 = context only. A group without any token to score
asks whether the teacher can read its prompt, and costs no forward."""
CandidateIdArray = npt.NDArray[np.integer]
"""Ids to score at every token of a response, [T, C]."""

REFUSED_BY_CLIENT = "REFUSED_BY_CLIENT"
"""Reason of a refusal that cost no round trip."""
MAX_REQUEST_ID_LENGTH = 128
_MAX_TOKEN_ID = 2**32 - 1


class ScoreOptions(TypedDict, total=False):
    """Keyword arguments of `TeacherClient.score`, for what passes them on."""

    top_k: Required[int]
    temperature: float
    teacher: str
    adapter: str
    tokenizer_id: str
    score_masks: Sequence[ScoreMask | None] | None
    candidate_ids: Sequence[CandidateIdArray | None] | None
    logprob_dtype: LogprobDtype
    batch_invariant: bool
    segmentation: SegmentationPolicy | None
    paper_token_ids: Sequence[int]
    request_id: str | None
    timeout_seconds: float | None


class RegisterOptions(TypedDict, total=False):
    """Keyword arguments of `TeacherClient.register_tokenizer`, for what passes them on."""

    chat_template: str | None
    teacher: str
    end_token_ids: Sequence[int]
    teacher_end_token_ids: Sequence[int]
    special_pairs: Mapping[str, str]
    vocabulary_size: int
    timeout_seconds: float | None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class GroupRequest:
    """One group as it will be sent, and against which the answer is verified."""

    request_id: str
    teacher: str
    adapter: str
    tokenizer_id: str
    prompt: Prompt
    prompt_ids_P: TokenArray | None
    """None where the prompt is text or chat: only the answer tells its ids."""
    responses_T: tuple[TokenArray, ...]
    score_masks_T: tuple[npt.NDArray[np.bool_], ...]
    candidate_ids_TC: tuple[TokenArray | None, ...]
    """One entry per response; None where none are named."""
    top_k: int
    temperature: float
    logprob_dtype: LogprobDtype
    batch_invariant: bool
    segmentation: SegmentationPolicy | None
    """None leaves it to the server."""
    paper_token_ids: tuple[int, ...]

    @property
    def has_chat_arguments(self) -> bool:
        """Whether the prompt needs a server with Capabilities.chat_arguments."""
        return isinstance(self.prompt, Chat) and self.prompt.has_chat_arguments


@dataclass(frozen=True, slots=True, kw_only=True)
class RegistrationRequest:
    """A tokenizer to register, now and whenever the server has lost it."""

    tokenizer_json: str
    chat_template: str | None
    teacher: str
    end_token_ids: tuple[int, ...]
    teacher_end_token_ids: tuple[int, ...]
    special_pairs: tuple[tuple[str, str], ...]
    """Student's text, teacher's text."""
    vocabulary_size: int


def check_group(
    prompt: Prompt,
    *,
    request_id: str,
    teacher: str,
    adapter: str,
    tokenizer_id: str,
    responses: Sequence[TokenSequence],
    score_masks: Sequence[ScoreMask | None] | None,
    candidate_ids: Sequence[CandidateIdArray | None] | None,
    top_k: int,
    temperature: float,
    logprob_dtype: LogprobDtype,
    batch_invariant: bool,
    segmentation: SegmentationPolicy | None,
    paper_token_ids: Sequence[int],
) -> GroupRequest:
    """The group as arrays. Raises InvalidRequestError, naming the field at fault."""
    _check_scalars(request_id=request_id, top_k=top_k, temperature=temperature)
    if not len(responses):
        raise _refusal("responses", "is empty: send at least one response")
    arrays_T = tuple(_ids(ids, field=f"responses[{index}].ids") for index, ids in enumerate(responses))
    return GroupRequest(
        request_id=request_id,
        teacher=teacher,
        adapter=adapter,
        tokenizer_id=tokenizer_id,
        prompt=prompt,
        prompt_ids_P=_prompt_ids(prompt),
        responses_T=arrays_T,
        score_masks_T=_score_masks(score_masks, responses_T=arrays_T),
        candidate_ids_TC=_candidate_ids(candidate_ids, responses_T=arrays_T),
        top_k=top_k,
        temperature=temperature,
        logprob_dtype=logprob_dtype,
        batch_invariant=batch_invariant,
        segmentation=segmentation,
        paper_token_ids=_paper_token_ids(paper_token_ids, segmentation=segmentation),
    )


def check_weight_update(path: str, *, adapter: str, unload: bool) -> None:
    """Raises InvalidRequestError where an update names too little, or what does not go together."""
    if unload and not adapter:
        raise _refusal("adapter", "is empty: unload takes an adapter away, and needs its name")
    if unload and path:
        raise _refusal("path", "is for weights to load: leave it out with unload")
    if not (unload or path):
        raise _refusal("path", "is empty: name a folder inside the server's engine.weights_folder")


def check_registration(
    tokenizer_json: str,
    *,
    chat_template: str | None,
    teacher: str,
    end_token_ids: Sequence[int],
    teacher_end_token_ids: Sequence[int],
    special_pairs: Mapping[str, str],
    vocabulary_size: int,
) -> RegistrationRequest:
    """The tokenizer to register; whether the JSON is one, its fingerprint tells. Raises InvalidRequestError."""
    if not tokenizer_json:
        raise _refusal("tokenizer_json", "is empty: send the text of the student's tokenizer.json")
    if not 0 <= vocabulary_size <= _MAX_TOKEN_ID:
        raise _refusal("vocabulary_size", f"is {vocabulary_size}, must be the number of logits, or 0")
    for student, theirs in special_pairs.items():
        if not (student and theirs):
            raise _refusal("special_pairs", f"holds {student!r} with {theirs!r}: both must be the text of a token")
    return RegistrationRequest(
        tokenizer_json=tokenizer_json,
        chat_template=chat_template,
        teacher=teacher,
        end_token_ids=_id_tuple(end_token_ids, field="end_token_ids"),
        teacher_end_token_ids=_id_tuple(teacher_end_token_ids, field="teacher_end_token_ids"),
        special_pairs=tuple(special_pairs.items()),
        vocabulary_size=vocabulary_size,
    )


def _check_scalars(*, request_id: str, top_k: int, temperature: float) -> None:
    if not 0 < len(request_id) <= MAX_REQUEST_ID_LENGTH:
        raise _refusal("request_id", f"has {len(request_id)} characters, must have 1 to {MAX_REQUEST_ID_LENGTH}")
    if top_k < 1:
        raise _refusal("top_k", f"is {top_k}, must be at least 1")
    if not (math.isfinite(temperature) and temperature > 0):
        raise _refusal("temperature", f"is {temperature}, must be finite and above 0")


def _paper_token_ids(ids: Sequence[int], *, segmentation: SegmentationPolicy | None) -> tuple[int, ...]:
    is_paper = segmentation is SegmentationPolicy.PAPER
    if is_paper and not len(ids):
        raise _refusal("paper_token_ids", "is empty: the policy PAPER masks the first occurrence of at least one id")
    if len(ids) and not is_paper:
        policy = "the server's default" if segmentation is None else segmentation.name
        raise _refusal("paper_token_ids", f"is for the policy PAPER alone, not for {policy}: leave it out")
    return _id_tuple(ids, field="paper_token_ids")


def _id_tuple(ids: Sequence[int], *, field: str) -> tuple[int, ...]:
    return tuple(_ids(ids, field=field).tolist()) if len(ids) else ()


def _prompt_ids(prompt: Prompt) -> TokenArray | None:
    match prompt:
        case StudentIds(ids=ids):
            return _ids(ids, field="prompt.student_ids")
        case TeacherIds(ids=ids):
            return _ids(ids, field="prompt.teacher_ids")
        case Text(text=text) if not text:
            raise _refusal("prompt.text.text", "is empty: send at least one character")
        case Chat(messages=messages) if not messages:
            raise _refusal("prompt.chat.messages", "is empty: send at least one message")
        case Chat() as chat:
            _check_chat(chat)
    return None


def _check_chat(chat: Chat) -> None:
    if len(chat.tools) > MAX_TOOLS:
        raise _refusal("prompt.chat.tools", f"has {len(chat.tools)} tools, more than {MAX_TOOLS}: send fewer")
    for index, tool in enumerate(chat.tools):
        _check_json(tool, field=f"prompt.chat.tools[{index}]")
    _check_json(chat.template_arguments, field="prompt.chat.template_arguments")
    for turn, message in enumerate(chat.messages):
        for index, call in enumerate(message.tool_calls):
            field = f"prompt.chat.messages[{turn}].tool_calls[{index}]"
            if not call.name:
                raise _refusal(f"{field}.name", "is empty: name the function that was called")
            _check_json(call.arguments, field=f"{field}.arguments")


def _check_json(value: Mapping[str, Json], *, field: str) -> None:
    try:
        object_text(value)
    except ValueError as error:
        raise _refusal(field, str(error)) from error


def _ids(ids: TokenSequence, *, field: str) -> TokenArray:
    array = np.asarray(ids)
    if array.ndim != 1 or not array.size:
        raise _refusal(field, f"has shape {array.shape}, must be one-dimensional with at least one token")
    return _as_ids(array, field=field)


def _as_ids(array: npt.NDArray[np.generic], *, field: str) -> TokenArray:
    """An array that is not empty, of any shape."""
    if not np.issubdtype(array.dtype, np.integer):
        raise _refusal(field, f"has dtype {array.dtype}, must hold integers")
    low, high = int(array.min()), int(array.max())
    if low < 0 or high > _MAX_TOKEN_ID:
        raise _refusal(field, f"holds id {low if low < 0 else high}, ids must be in [0, {_MAX_TOKEN_ID}]")
    return array.astype(np.int64)


def _score_masks(
    masks: Sequence[ScoreMask | None] | None, *, responses_T: tuple[TokenArray, ...]
) -> tuple[npt.NDArray[np.bool_], ...]:
    if masks is None:
        return tuple(np.ones(len(ids_T), np.bool_) for ids_T in responses_T)
    if len(masks) != len(responses_T):
        raise _refusal("responses", f"come {len(responses_T)} with {len(masks)} score masks: send one mask for each")
    masks_T = tuple(
        _score_mask(mask, num_tokens=len(ids_T), field=f"responses[{index}].score_mask")
        for index, (mask, ids_T) in enumerate(zip(masks, responses_T, strict=True))
    )
    is_wanted = [bool(mask_T.any()) for mask_T in masks_T]
    if any(is_wanted) and not all(is_wanted):
        raise _refusal(
            f"responses[{is_wanted.index(False)}].score_mask", "excludes every token: at least one must be scored"
        )
    return masks_T


def _score_mask(mask: ScoreMask | None, *, num_tokens: int, field: str) -> npt.NDArray[np.bool_]:
    if mask is None:
        return np.ones(num_tokens, np.bool_)
    array = np.asarray(mask)
    if array.shape != (num_tokens,):
        raise _refusal(field, f"has shape {array.shape} for {num_tokens} tokens: send one entry per token")
    if not np.isin(array, (0, 1)).all():
        raise _refusal(field, "holds a value other than 0 and 1")
    return array.astype(np.bool_)


def _candidate_ids(
    candidate_ids: Sequence[CandidateIdArray | None] | None, *, responses_T: tuple[TokenArray, ...]
) -> tuple[TokenArray | None, ...]:
    if candidate_ids is None:
        return (None,) * len(responses_T)
    if len(candidate_ids) != len(responses_T):
        raise _refusal(
            "responses",
            f"come {len(responses_T)} with {len(candidate_ids)} arrays of candidate_ids: send one for each, or None",
        )
    return tuple(
        None
        if ids is None
        else _candidate_block(ids, num_tokens=len(ids_T), field=f"responses[{index}].candidates.ids")
        for index, (ids, ids_T) in enumerate(zip(candidate_ids, responses_T, strict=True))
    )


def _candidate_block(ids: CandidateIdArray, *, num_tokens: int, field: str) -> TokenArray:
    array = np.asarray(ids)
    if array.ndim != 2 or len(array) != num_tokens or not array.size:
        raise _refusal(
            field, f"has shape {array.shape} for {num_tokens} tokens: send one row per token, of one id or more"
        )
    return _as_ids(array, field=field)


def _refusal(field: str, message: str) -> InvalidRequestError:
    return InvalidRequestError(f"{field} {message}", field=field, reason=REFUSED_BY_CLIENT)
