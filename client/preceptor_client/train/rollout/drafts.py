"""Turns text that the student did not write into episodes: tokenizes it, cuts it, has the student read it.

Knows nothing of where the text came from.
"""

# T = tokens of the response

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from preceptor_client.train.data.examples import Example
from preceptor_client.train.errors import InvalidEpisodeError
from preceptor_client.train.rollout.episode import Episode, FinishReason, Segment
from preceptor_client.train.student.view import StudentView
from preceptor_client.types import ChatMessage

if TYPE_CHECKING:
    from preceptor_client.train.rollout.engine import OnBad, Policy

_BEFORE = "\n"
"""A tokenizer may put a space before the first word of a text; behind this it does not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DraftSegment:
    """Consecutive tokens of one author: their ids, or a text that is yet to be tokenized."""

    ids: tuple[int, ...] | None = None
    text: str = ""
    """Read where `ids` is None. Special tokens that stand in it are read as such."""
    is_policy: bool = True
    """Whether the tokens are trained on as if the student had written them."""
    is_masked: bool = False
    logprobs: tuple[float, ...] | None = None
    """Of the ids, as their author drew them; None takes the student's own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """An episode before the student has read it."""

    where: str
    """For messages: the line or the candidate that it came from."""
    example: Example
    slot: int
    sample: int = 0
    part: int = 0
    prompt_ids: tuple[int, ...]
    segments: tuple[DraftSegment, ...]
    finish_reason: FinishReason | None = None
    """None: "stop" where the response ends with an end token, or is a text, which gets an end token; else "length"."""
    reward: float | tuple[float | None, ...] | None = None
    policy_version: int = 0
    messages: tuple[ChatMessage, ...] = ()
    info: Mapping[str, object] = field(default_factory=dict)


def episodes_of(drafts: Sequence[Draft], *, policy: Policy, max_new_tokens: int, on_bad: OnBad) -> list[Episode]:
    """The episodes, all read by the student in one call. A draft that cannot be used goes to `on_bad` and is left out.
    A segment to train on that is longer than `max_new_tokens` is cut, and its episode ends there."""
    ready: list[Draft] = []
    for draft in drafts:
        try:
            ready.append(_ready(draft, policy=policy, max_new_tokens=max_new_tokens))
        except InvalidEpisodeError as error:
            on_bad(error)
    if not ready:
        return []
    views = policy.view([draft.prompt_ids for draft in ready], [_response_ids(draft) for draft in ready])
    episodes: list[Episode] = []
    for draft, view in zip(ready, views, strict=True):
        try:
            episodes.append(_episode(draft, view=view))
        except InvalidEpisodeError as error:
            on_bad(InvalidEpisodeError(error.why, where=draft.where))
    return episodes


def text_ids(policy: Policy, text: str) -> tuple[int, ...]:
    """The ids of a text that follows another, without special tokens that the tokenizer adds by itself."""
    before, joined = _plain_ids(policy, _BEFORE), _plain_ids(policy, _BEFORE + text)
    is_split = bool(before) and joined[: len(before)] == before
    return joined[len(before) :] if is_split else _plain_ids(policy, text)


def _plain_ids(policy: Policy, text: str) -> tuple[int, ...]:
    return tuple(policy.tokenizer(text, add_special_tokens=False)["input_ids"])


def _ready(draft: Draft, *, policy: Policy, max_new_tokens: int) -> Draft:
    """The draft with ids everywhere and a finish reason. Raises InvalidEpisodeError."""
    is_text = draft.segments[-1].ids is None
    segments = [
        one if one.ids is not None else replace(one, ids=text_ids(policy, one.text), text="") for one in draft.segments
    ]
    reason = draft.finish_reason or ("stop" if is_text or _ends(segments[-1], policy) else "length")
    if is_text and segments[-1].is_policy and reason == "stop" and not _ends(segments[-1], policy):
        segments[-1] = replace(segments[-1], ids=(*(segments[-1].ids or ()), policy.end_token_ids[0]))
    cut = _cut(replace(draft, segments=tuple(segments), finish_reason=reason), max_new_tokens=max_new_tokens)
    _check(cut, policy=policy)
    return cut


def _ends(segment: DraftSegment, policy: Policy) -> bool:
    return bool(segment.ids) and segment.ids is not None and segment.ids[-1] in policy.end_token_ids


def _cut(draft: Draft, *, max_new_tokens: int) -> Draft:
    for place, segment in enumerate(draft.segments):
        if segment.is_policy and len(segment.ids or ()) > max_new_tokens:
            logprobs = None if segment.logprobs is None else segment.logprobs[:max_new_tokens]
            short = replace(segment, ids=(segment.ids or ())[:max_new_tokens], logprobs=logprobs)
            reward = draft.reward[: place + 1] if isinstance(draft.reward, tuple) else draft.reward
            return replace(draft, segments=(*draft.segments[:place], short), finish_reason="length", reward=reward)
    return draft


def _check(draft: Draft, *, policy: Policy) -> None:
    ids = _response_ids(draft)
    if not ids:
        raise InvalidEpisodeError("its response has no tokens", where=draft.where)
    if not any(segment.is_policy and segment.ids for segment in draft.segments):
        raise InvalidEpisodeError("it has nothing to train on: is_policy is false in every segment", where=draft.where)
    if (strange := max((*draft.prompt_ids, *ids))) >= policy.num_ids:
        raise InvalidEpisodeError(
            f"holds id {strange}, and the student's ids are in [0, {policy.num_ids}): was it written with another "
            "tokenizer? Give texts instead of ids",
            where=draft.where,
        )
    if (length := len(draft.prompt_ids) + len(ids)) > policy.max_length:
        raise InvalidEpisodeError(
            f"prompt and response are {length} tokens, and the student reads {policy.max_length}: shorten it, or lower "
            "rollout.max_new_tokens",
            where=draft.where,
        )


def _episode(draft: Draft, *, view: StudentView) -> Episode:
    assert draft.finish_reason is not None
    segments: list[Segment] = []
    start = 0
    for one in draft.segments:
        ids = one.ids or ()
        own = _with_logprobs(_sliced(view, start, start + len(ids)), one.logprobs) if one.is_policy else None
        segments.append(Segment(ids=ids, is_policy=one.is_policy, is_masked=one.is_masked, student=own))
        start += len(ids)
    return Episode(
        example=draft.example,
        slot=draft.slot,
        sample=draft.sample,
        part=draft.part,
        prompt_ids=draft.prompt_ids,
        segments=tuple(segments),
        reward=draft.reward,
        policy_version=draft.policy_version,
        finish_reason=draft.finish_reason,
        messages=draft.messages,
        info=draft.info,
    )


def _response_ids(draft: Draft) -> tuple[int, ...]:
    return tuple(token for segment in draft.segments for token in segment.ids or ())


def _sliced(view: StudentView, start: int, stop: int) -> StudentView:
    return StudentView(
        logprobs_T=view.logprobs_T[start:stop],
        entropies_T=view.entropies_T[start:stop],
        top_ids_TK=None if view.top_ids_TK is None else view.top_ids_TK[start:stop],
    )


def _with_logprobs(view: StudentView, logprobs: tuple[float, ...] | None) -> StudentView:
    return view if logprobs is None else replace(view, logprobs_T=np.array(logprobs, np.float32))
