"""Parses one row of data into an example, and checks its fields. Knows nothing of files, tokenizers or templates."""

from __future__ import annotations

import math
from collections.abc import Mapping
from difflib import get_close_matches
from typing import Literal

from preceptor.json_values import JsonObject

from preceptor_client.train.data.examples import Example, ExamplePrompt
from preceptor_client.train.data.excerpts import excerpt
from preceptor_client.train.data.messages import (
    parse_message,
    parse_object,
    parse_template_kwargs,
    parse_text,
    parse_tools,
)
from preceptor_client.train.data.reading import Number
from preceptor_client.train.errors import InvalidDataError

KEYS = (
    "prompt",
    "teacher_prompt",
    "answer",
    "task",
    "teacher_prompts",
    "tools",
    "chat_template_kwargs",
    "teacher_chat_template_kwargs",
)

ExtraFields = Literal["refuse", "ignore", "keep"]


def parse_example(
    fields: Mapping[str, object], *, index: int, where: str, extra_fields: ExtraFields = "refuse"
) -> Example:
    """The example. Raises InvalidDataError, which names `where` and the field at fault."""
    try:
        _check_keys(fields, extra_fields=extra_fields)
        answer, *others = _answers(fields.get("answer")) or [None]
        theirs = fields.get("teacher_prompt")
        return Example(
            index=index,
            where=where,
            prompt=_prompt(fields["prompt"], field="'prompt'"),
            teacher_prompt=None if theirs is None else _prompt(theirs, field="'teacher_prompt'"),
            teacher_prompts=_teacher_prompts(fields.get("teacher_prompts")),
            answer=answer,
            other_answers=tuple(other for other in others if other is not None),
            task=_task(fields.get("task")),
            tools=parse_tools(fields.get("tools"), field="'tools'"),
            chat_template_kwargs=_template_kwargs(fields, "chat_template_kwargs"),
            teacher_chat_template_kwargs=_template_kwargs(fields, "teacher_chat_template_kwargs"),
            extra=_extra(fields) if extra_fields == "keep" else {},
        )
    except InvalidDataError as error:
        raise InvalidDataError(error.why, where=where) from error


def _teacher_prompts(value: object) -> Mapping[str, ExamplePrompt]:
    """By the names of teachers."""
    if value is None:
        return {}
    if not isinstance(value, dict) or not value:
        raise InvalidDataError(
            f"'teacher_prompts' must be an object, a prompt for each name of a teacher, and not empty; it is "
            f"{excerpt(value)}"
        )
    return {name: _prompt(prompt, field=f"'teacher_prompts' {excerpt(name)}") for name, prompt in value.items()}


def _check_keys(fields: Mapping[str, object], *, extra_fields: ExtraFields) -> None:
    for key in fields:
        if not key.isascii():
            parse_text(key, field=f"key {excerpt(key)}")
    unknown = sorted(set(fields) - set(KEYS))
    if unknown and extra_fields == "refuse":
        likely = get_close_matches(unknown[0], KEYS, n=1)
        meant = f"did you mean {likely[0]!r}? " if likely else ""
        raise InvalidDataError(
            f"unknown key {excerpt(unknown[0])}: {meant}Known are {', '.join(KEYS)}; data.extra_fields=ignore leaves "
            "others out, and keep hands them to parts of your own"
        )
    if "prompt" not in fields:
        hint = ": give the messages up to the answer as 'prompt'" if "messages" in fields else ""
        raise InvalidDataError(f"has no 'prompt'{hint}")


def _prompt(value: object, *, field: str) -> ExamplePrompt:
    if isinstance(value, str) and value:
        return parse_text(value, field=field)
    if not isinstance(value, list) or not value:
        raise InvalidDataError(f"{field} must be a text, or a list of messages, and not empty; it is {excerpt(value)}")
    return tuple(parse_message(message, field=f"{field} message {number}") for number, message in enumerate(value))


def _template_kwargs(fields: Mapping[str, object], name: str) -> JsonObject:
    return parse_template_kwargs(fields.get(name), field=repr(name))


def _extra(fields: Mapping[str, object]) -> JsonObject:
    own: JsonObject = {}
    for key in sorted(set(fields) - set(KEYS)):
        own |= parse_object({key: fields[key]}, field=f"key {excerpt(key)}")
    return own


def _answers(value: object) -> list[str | None]:
    """Every text that is right, once; none where there is no answer."""
    if value is None:
        return []
    values = value if isinstance(value, list) else [value]
    if not values:
        raise InvalidDataError("'answer' is an empty list: give at least one answer, or leave it out")
    return list(dict.fromkeys(_answer(one) for one in values))


def _answer(value: object) -> str:
    """True and false are no answers: a model may write them in many ways, and JSON in one."""
    if isinstance(value, str) and value.strip():
        return parse_text(value, field="'answer'")
    if isinstance(value, Number):
        return value.text
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        return str(value)
    raise InvalidDataError(
        f"'answer' must be a text that is not empty, a number, or a list of these; it is {excerpt(value)}"
    )


def _task(value: object) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        raise InvalidDataError(f"'task' must be a text, not {excerpt(value)}")
    return parse_text(value, field="'task'")
