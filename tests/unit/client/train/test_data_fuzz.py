"""Whatever a data file holds, and whatever a chat template does: examples, or InvalidDataError and nothing else.

DATA_FUZZ_CASES=20000 makes more of it: `make test-data-fuzz`.
"""

from __future__ import annotations

import codecs
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from preceptor_client.train.data.bad_examples import BadExamples
from preceptor_client.train.data.examples import Example
from preceptor_client.train.data.loading import load_examples
from preceptor_client.train.data.rows import KEYS, ExtraFields
from preceptor_client.train.errors import InvalidDataError
from preceptor_client.train.student.encoding import encode_prompt
from preceptor_client.train.student.student import Student

from tests.unit.client.train.tiny import tiny_student

NUM_CASES = int(os.environ.get("DATA_FUZZ_CASES", "200"))
many = settings(
    max_examples=NUM_CASES // 4,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.function_scoped_fixture],
)

whole_text = st.text(st.characters(codec="utf-8"), max_size=12)
halves = st.characters(categories=["Cs"])
any_text = st.one_of(
    whole_text,
    st.text(st.characters(codec="utf-8"), min_size=1, max_size=12),
    st.text(st.sampled_from('aé\0\u2028\n\r{"\\'), min_size=1, max_size=4),
    st.builds("{}{}{}".format, whole_text, halves, whole_text),
)
"""Of every plane; one in four holds half a character, which an alphabet of all characters would hardly ever give."""
LONG_NUMBER = "stands for an integer of 5,000 digits"
constants = st.sampled_from([float("nan"), float("inf"), float("-inf"), LONG_NUMBER, -(10**400), 1e308])
scalars = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), any_text, constants)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(any_text, inner, max_size=3), max_leaves=8
)
objects = st.dictionaries(any_text, values, max_size=3)
calls = st.fixed_dictionaries({"function": st.fixed_dictionaries({"name": any_text, "arguments": objects | any_text})})
good_messages = st.lists(
    st.fixed_dictionaries(
        {"role": any_text, "content": any_text},
        optional={
            "tool_calls": st.lists(calls | values, max_size=2),
            "tool_call_id": any_text,
            "name": any_text,
            "reasoning_content": any_text,
        },
    ),
    min_size=1,
    max_size=3,
)
tools = st.lists(
    st.fixed_dictionaries(
        {"type": st.just("function"), "function": st.fixed_dictionaries({"name": any_text, "parameters": objects})}
    ),
    max_size=2,
)
messages = st.one_of(good_messages, st.lists(st.dictionaries(any_text, values), max_size=3))
prompts = st.one_of(any_text, good_messages)
answers = st.one_of(any_text, st.integers(), st.floats(allow_nan=False), st.lists(any_text, min_size=1, max_size=3))
keys = st.one_of(st.sampled_from([*KEYS, "id", "messages"]), any_text)
good_rows = st.fixed_dictionaries(
    {"prompt": prompts},
    optional={
        "teacher_prompt": prompts,
        "answer": answers,
        "task": any_text,
        "tools": tools | values,
        "chat_template_kwargs": st.dictionaries(st.sampled_from(["depth", "tools", "a b"]), values, max_size=2),
        "teacher_chat_template_kwargs": values,
    },
)
rows = st.one_of(
    good_rows,
    good_rows,
    st.fixed_dictionaries({"prompt": messages}, optional={"answer": values, "task": any_text}),
    st.dictionaries(keys, st.one_of(any_text, messages, values), max_size=5),
    values,
)
"""Fit to be read but for their characters, as often as not."""


def _json(value: object, *, is_ascii: bool) -> bytes:
    """As a careless program writes it: NaN, numbers of any length, halves of characters escaped or as bytes."""
    text = json.dumps(value, ensure_ascii=is_ascii).replace(f'"{LONG_NUMBER}"', "9" * 5_000)
    return text.encode("utf-8", "surrogatepass")


written = st.builds(_json, rows, is_ascii=st.sampled_from([True, True, True, False]))
line = st.one_of(
    written,
    written,
    written,
    st.binary(max_size=40),
    st.integers(1, 3_000).map(lambda depth: b"[" * depth),
    st.integers(1, 3_000).map(lambda depth: b'{"prompt": ' * depth + b"1" + b"}" * depth),
)
heads = [codecs.BOM_UTF8, codecs.BOM_UTF16_LE, codecs.BOM_UTF32_BE, b"\x1f\x8b", b"\0\0"]
head = st.sampled_from([b""] * 15 + heads)
encoding = st.sampled_from(["utf-8"] * 6 + ["utf-16", "utf-32-le", "cp1252"])


def _loaded(data: bytes, *, bad: BadExamples | None = None, extra_fields: ExtraFields = "refuse") -> list[Example]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "data.jsonl"
        path.write_bytes(data)
        return load_examples(str(path), bad=bad, extra_fields=extra_fields)


def _texts(example: Example) -> list[str]:
    """Everything that a tokenizer, the wire or the report is given."""
    prompts = [example.prompt] if example.teacher_prompt is None else [example.prompt, example.teacher_prompt]
    texts = [example.task, *example.answers, *example.tools]
    texts += [json.dumps(one) for one in (example.chat_template_kwargs, example.teacher_chat_template_kwargs)]
    for prompt in prompts:
        if isinstance(prompt, str):
            texts.append(prompt)
        else:
            # Not escaped, so that half a character would show; rendering is where arguments must be JSON.
            texts += [json.dumps(one.as_template_message(), ensure_ascii=False, allow_nan=False) for one in prompt]
    return texts


def _check(data: bytes, *, extra_fields: ExtraFields) -> None:
    """Under both policies; whoever prints or sends what came of it can."""
    stopped: InvalidDataError | None = None
    try:
        examples = _loaded(data, extra_fields=extra_fields)
    except InvalidDataError as error:
        stopped, examples = error, []
    bad = BadExamples(policy="skip", limit=10**9)
    try:
        kept = _loaded(data, bad=bad, extra_fields=extra_fields)
    except InvalidDataError as error:
        kept = []
        str(error).encode()
        assert stopped is not None
    for example in kept:
        for text in _texts(example):
            text.encode()
        assert example.prompt
        assert all(answer.strip() for answer in example.answers)
    if stopped is None:
        assert kept == examples
        assert not bad.found
        return
    message = str(stopped)
    message.encode()
    assert "data.jsonl" in message
    assert "\n" not in message
    assert len(message) < 1_000


@many
@given(st.lists(line, max_size=4), head, st.sampled_from(["refuse", "ignore"]))
def test_lines_of_anything(lines: list[bytes], head: bytes, extra_fields: ExtraFields) -> None:
    _check(head + b"\n".join(lines), extra_fields=extra_fields)


@many
@given(st.lists(rows, max_size=3), encoding, st.booleans())
def test_rows_of_anything_in_any_encoding(written: list[Any], encoding: str, is_ascii: bool) -> None:
    text = b"\n".join(_json(row, is_ascii=is_ascii) for row in written).decode("utf-8", "replace")
    _check(text.encode(encoding, "replace"), extra_fields="ignore")


@many
@given(st.binary(max_size=200))
def test_bytes_of_anything(data: bytes) -> None:
    _check(data, extra_fields="refuse")


expression = st.one_of(
    st.sampled_from(
        [
            "raise_exception(messages[0]['content'])",
            "messages[0]['content'] + 1",
            "messages[5].content",
            "1 // 0",
            "'%d' % messages[0]['role']",
            "messages[0]['content'] | tojson",
            "messages[0]['content'].split('')",
            "messages[0]['content'].index('absent')",
            "range(10**9)",
            "messages.pop()",
            "messages[0].__class__.__init__.__globals__",
            "strftime_now(messages[0]['content'])",
            "'x' * -1",
            "namespace(a=1).b.c",
            "{}['a']['b']",
        ]
    ),
    st.text(st.sampled_from("{}%[]()|'\"messages.content+-/0 1for in if endif"), max_size=20),
)


@pytest.fixture(scope="module")
def fuzzed() -> Student:
    return tiny_student()


@many
@given(prompt=prompts, expression=expression)
def test_prompts_of_anything_under_templates_that_do_anything(fuzzed: Student, prompt: Any, expression: str) -> None:
    fuzzed.tokenizer.chat_template = "{{ " + expression + " }}"
    data = _json({"prompt": prompt}, is_ascii=True)
    refused = ""
    try:
        (example,) = _loaded(data)
        ids = encode_prompt(fuzzed, example.prompt, where=example.name)
    except InvalidDataError as error:
        refused = str(error)
    refused.encode()
    assert "data.jsonl" in refused or (ids and all(0 <= token < 259 for token in ids))
