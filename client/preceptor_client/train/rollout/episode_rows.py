"""One episode as a line of JSON: reads it, writes it. Knows nothing of files, of tokenizers or of students.

prompt | prompt_ids | example    what the line answers: a text or messages, their ids, an index among the run's examples
response | response_ids | segments    [{ids | text, is_policy, is_masked?, logprobs?}]: what follows it
reward, finish_reason, step, sample, part, policy_version, messages, info    as in `Episode`, each optional
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import cast, get_args

import numpy as np

from preceptor_client.train.data.examples import ExamplePrompt
from preceptor_client.train.data.excerpts import excerpt
from preceptor_client.train.data.messages import parse_text
from preceptor_client.train.data.reading import Number
from preceptor_client.train.data.rows import parse_example
from preceptor_client.train.errors import InvalidDataError
from preceptor_client.train.rollout.drafts import DraftSegment
from preceptor_client.train.rollout.episode import Episode, FinishReason, Segment
from preceptor_client.types import ChatMessage

_ASKED = ("example", "prompt", "prompt_ids")
_SAID = ("response", "response_ids", "segments")
_OTHERS = ("reward", "finish_reason", "step", "sample", "part", "policy_version", "messages", "info")
KEYS = (*_ASKED, *_SAID, *_OTHERS)
_SEGMENT_KEYS = ("ids", "text", "is_policy", "is_masked", "logprobs")
_MAX_DIGITS = 18

Reward = float | tuple[float | None, ...] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class EpisodeRow:
    """One line, read."""

    where: str
    index: int
    """Its place among the lines of its file."""
    example: int | None = None
    prompt: ExamplePrompt | None = None
    prompt_ids: tuple[int, ...] | None = None
    segments: tuple[DraftSegment, ...]
    reward: Reward = None
    finish_reason: FinishReason | None = None
    step: int | None = None
    sample: int | None = None
    part: int = 0
    policy_version: int | None = None
    messages: tuple[ChatMessage, ...] = ()
    info: Mapping[str, object] = field(default_factory=dict)


def parse_episode(fields: Mapping[str, object], *, index: int, where: str) -> EpisodeRow:
    """The row. Raises InvalidDataError, which names `where` and the field at fault."""
    try:
        _check_keys(fields, known=KEYS)
        if not any(fields.get(key) is not None for key in _ASKED):
            raise InvalidDataError("says not what it answers: give 'prompt', 'prompt_ids' or 'example'")
        segments = _segments(fields)
        part = _whole(fields, "part") or 0
        if part and fields.get("sample") is None:
            raise InvalidDataError("'part' is given without 'sample': give both, parts of one episode share it")
        return EpisodeRow(
            where=where,
            index=index,
            example=_whole(fields, "example"),
            prompt=_prompt(fields.get("prompt"), field="prompt"),
            prompt_ids=None if fields.get("prompt_ids") is None else _ids(fields["prompt_ids"], field="'prompt_ids'"),
            segments=segments,
            reward=_reward(fields.get("reward"), num_segments=len(segments)),
            finish_reason=_finish_reason(fields.get("finish_reason")),
            step=_whole(fields, "step"),
            sample=_whole(fields, "sample"),
            part=part,
            policy_version=_whole(fields, "policy_version"),
            messages=_messages(fields.get("messages")),
            info=_info(fields.get("info")),
        )
    except InvalidDataError as error:
        raise InvalidDataError(error.why, where=where) from error


def episode_row(episode: Episode, *, step: int) -> dict[str, object]:
    """The line of an episode, which `parse_episode` reads."""
    row: dict[str, object] = {
        "step": step,
        "example": episode.example.index,
        "prompt": _prompt_value(episode.example.prompt),
        "sample": episode.sample,
        "part": episode.part,
        "prompt_ids": list(episode.prompt_ids),
        "segments": [_segment_row(segment) for segment in episode.segments],
        "reward": list(episode.reward) if isinstance(episode.reward, tuple) else episode.reward,
        "finish_reason": episode.finish_reason,
        "policy_version": episode.policy_version,
    }
    if episode.messages:
        row["messages"] = _prompt_value(episode.messages)
    if episode.info:
        row["info"] = _plain(episode.info)
    return row


def _prompt_value(prompt: ExamplePrompt) -> object:
    return prompt if isinstance(prompt, str) else [message.as_template_message() for message in prompt]


def _segment_row(segment: Segment) -> dict[str, object]:
    row: dict[str, object] = {"ids": list(segment.ids), "is_policy": segment.is_policy}
    if segment.is_masked:
        row["is_masked"] = True
    if segment.student is not None and np.isfinite(segment.student.logprobs_T).all():
        # The shortest decimal that is this float32.
        row["logprobs"] = [float(str(logprob)) for logprob in segment.student.logprobs_T]
    return row


def _plain(value: object) -> object:
    """The value where JSON holds it; else what Python writes for it."""
    if isinstance(value, Mapping):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else repr(value)
    return value if value is None or isinstance(value, str | int) else repr(value)


def _check_keys(fields: Mapping[str, object], *, known: Sequence[str], of: str = "") -> None:
    if unknown := sorted(set(fields) - set(known)):
        likely = get_close_matches(unknown[0], known, n=1)
        meant = f"did you mean {likely[0]!r}? " if likely else ""
        raise InvalidDataError(f"{of}unknown key {excerpt(unknown[0])}: {meant}Known are {', '.join(known)}")


def _segments(fields: Mapping[str, object]) -> tuple[DraftSegment, ...]:
    given = [key for key in _SAID if fields.get(key) is not None]
    if len(given) != 1:
        found = " and ".join(given) or "none of them"
        raise InvalidDataError(f"needs one of {', '.join(_SAID)}, and has {found}")
    value = fields[given[0]]
    if given[0] == "response":
        return (DraftSegment(text=_text(value, field="'response'")),)
    if given[0] == "response_ids":
        return (DraftSegment(ids=_ids(value, field="'response_ids'")),)
    if not isinstance(value, list) or not value:
        raise InvalidDataError(f"'segments' must be a list that is not empty; it is {excerpt(value)}")
    return tuple(_segment(one, field=f"segment {number}") for number, one in enumerate(value))


def _segment(value: object, *, field: str) -> DraftSegment:
    if not isinstance(value, dict):
        raise InvalidDataError(f"{field} must be an object, not {excerpt(value)}")
    _check_keys(value, known=_SEGMENT_KEYS, of=f"{field}: ")
    if ("ids" in value) == ("text" in value):
        raise InvalidDataError(f"{field} needs 'ids' or 'text', and not both")
    flags = {key: value.get(key, False) for key in ("is_policy", "is_masked")}
    if "is_policy" not in value or not all(isinstance(flag, bool) for flag in flags.values()):
        raise InvalidDataError(
            f"{field} needs 'is_policy', true or false, and may have 'is_masked'; it is {excerpt(value)}"
        )
    ids = _ids(value["ids"], field=f"{field}: 'ids'") if "ids" in value else None
    return DraftSegment(
        ids=ids,
        text=_text(value["text"], field=f"{field}: 'text'") if ids is None else "",
        is_policy=bool(flags["is_policy"]),
        is_masked=bool(flags["is_masked"]),
        logprobs=_logprobs(value.get("logprobs"), ids=ids, is_policy=bool(flags["is_policy"]), field=field),
    )


def _logprobs(value: object, *, ids: tuple[int, ...] | None, is_policy: bool, field: str) -> tuple[float, ...] | None:
    if value is None:
        return None
    if ids is None or not is_policy:
        raise InvalidDataError(f"{field}: 'logprobs' are for 'ids' with is_policy true: leave them out, or give ids")
    if not isinstance(value, list) or len(value) != len(ids):
        raise InvalidDataError(f"{field}: 'logprobs' must be a list of {len(ids)} numbers, one for each id")
    logprobs = tuple(_number(one, field=f"{field}: 'logprobs'") for one in value)
    # A sampler's rounding may leave a logprob a little above 0.
    if max(logprobs, default=0.0) > 1e-3:
        raise InvalidDataError(
            f"{field}: 'logprobs' holds {max(logprobs)}: natural logs of probabilities are at most 0"
        )
    return logprobs


def _finish_reason(value: object) -> FinishReason | None:
    if value is not None and value not in get_args(FinishReason):
        raise InvalidDataError(
            f"'finish_reason' must be one of {', '.join(get_args(FinishReason))}; it is {excerpt(value)}"
        )
    return cast("FinishReason | None", value)


def _reward(value: object, *, num_segments: int) -> Reward:
    if value is None:
        return None
    if not isinstance(value, list):
        return _number(value, field="'reward'")
    if len(value) != num_segments:
        raise InvalidDataError(
            f"'reward' has {len(value)} entries for {num_segments} segments: give one each, or a number"
        )
    return tuple(None if one is None else _number(one, field="'reward'") for one in value)


def _prompt(value: object, *, field: str) -> ExamplePrompt | None:
    if value is None:
        return None
    try:
        return parse_example({"prompt": value}, index=0, where="").prompt
    except InvalidDataError as error:
        raise InvalidDataError(error.why.replace("'prompt'", f"'{field}'")) from error


def _messages(value: object) -> tuple[ChatMessage, ...]:
    messages = _prompt(value, field="messages")
    if isinstance(messages, str):
        raise InvalidDataError(f"'messages' must be a list of messages; it is {excerpt(messages)}")
    return messages or ()


def _info(value: object) -> Mapping[str, object]:
    if value is not None and not isinstance(value, dict):
        raise InvalidDataError(f"'info' must be an object, not {excerpt(value)}")
    info = _unwrapped(value or {})
    assert isinstance(info, dict)
    return info


def _unwrapped(value: object) -> object:
    """With Python's numbers in place of those of `reading`."""
    if isinstance(value, Number):
        is_whole = value.text.lstrip("-").isdigit() and len(value.text) <= _MAX_DIGITS
        return int(value.text) if is_whole else float(value.text)
    if isinstance(value, dict):
        return {key: _unwrapped(one) for key, one in value.items()}
    return [_unwrapped(one) for one in value] if isinstance(value, list) else value


def _ids(value: object, *, field: str) -> tuple[int, ...]:
    if not isinstance(value, list):
        raise InvalidDataError(f"{field} must be a list of ids; it is {excerpt(value)}")
    return tuple(_integer(one, field=field) for one in value)


def _whole(fields: Mapping[str, object], key: str) -> int | None:
    value = fields.get(key)
    return None if value is None else _integer(value, field=f"'{key}'")


def _integer(value: object, *, field: str) -> int:
    if not isinstance(value, Number) or not value.text.isdigit() or len(value.text) > _MAX_DIGITS:
        raise InvalidDataError(f"{field} must hold whole numbers from 0; it holds {excerpt(value)}")
    return int(value.text)


def _number(value: object, *, field: str) -> float:
    number = float(value.text) if isinstance(value, Number) else math.nan
    if not math.isfinite(number):
        raise InvalidDataError(f"{field} must be a finite number; it is {excerpt(value)}")
    return number


def _text(value: object, *, field: str) -> str:
    if not isinstance(value, str):
        raise InvalidDataError(f"{field} must be a text; it is {excerpt(value)}")
    return parse_text(value, field=field)
