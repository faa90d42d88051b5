"""What the fields of a line of data may hold."""

from __future__ import annotations

import json
from copy import copy
from pathlib import Path
from typing import Any

import pytest
from preceptor.json_values import JsonObject
from preceptor.template_inputs import RESERVED
from preceptor_client.train.data.examples import Example
from preceptor_client.train.data.loading import load_examples
from preceptor_client.train.data.rows import ExtraFields, parse_example
from preceptor_client.train.errors import InvalidDataError
from preceptor_client.train.evaluation.config import EvaluationConfig
from preceptor_client.train.evaluation.evaluate import evaluate
from preceptor_client.train.student.rendering import render_chat
from preceptor_client.train.student.student import Student
from preceptor_client.types import ChatMessage, ToolCall

HALF = r"\ud83d"
"""The first half of an emoji, as JSON escapes it."""


def _load(tmp_path: Path, line: str, *, extra_fields: ExtraFields = "refuse") -> Example:
    path = tmp_path / "data.jsonl"
    path.write_text(line)
    (example,) = load_examples(str(path), extra_fields=extra_fields)
    return example


@pytest.mark.parametrize(
    ("line", "field"),
    [
        ('{"prompt": "ab%"}', "'prompt'"),
        ('{"prompt": "a", "teacher_prompt": "ab%"}', "'teacher_prompt'"),
        ('{"prompt": "a", "answer": "ab%"}', "'answer'"),
        ('{"prompt": "a", "answer": ["b", "ab%"]}', "'answer'"),
        ('{"prompt": "a", "task": "ab%"}', "'task'"),
        ('{"prompt": [{"role": "user", "content": "ab%"}]}', "'prompt' message 0: its content"),
        ('{"prompt": [{"role": "ab%", "content": "a"}]}', "'prompt' message 0: its role"),
        ('{"prompt": "a", "ab%": 1}', r"key 'ab\ud83d'"),
    ],
)
@pytest.mark.parametrize("extra_fields", ["refuse", "ignore"])
def test_half_a_character_is_told_with_its_field_and_place(
    tmp_path: Path, line: str, field: str, extra_fields: ExtraFields
) -> None:
    with pytest.raises(InvalidDataError) as caught:
        _load(tmp_path, line.replace("%", HALF), extra_fields=extra_fields)
    message = str(caught.value)
    assert f"data.jsonl:1: {field}" in message
    assert r"holds half a character (a lone surrogate, \ud83d) at character 3" in message
    message.encode()  # a terminal and a log are UTF-8


def test_two_halves_are_a_character(tmp_path: Path) -> None:
    assert _load(tmp_path, r'{"prompt": "\ud83d\ude00"}').prompt == "\N{GRINNING FACE}"


@pytest.mark.parametrize(
    ("value", "answers"),
    [
        ('"Oslo"', ("Oslo",)),
        ("4", ("4",)),
        ("-4.50", ("-4.50",)),
        ("1e3", ("1e3",)),
        ("7" * 5_000, ("7" * 5_000,)),
        ('["Oslo", "Kristiania", "Oslo"]', ("Oslo", "Kristiania")),
        ('[4, "four", 4.0]', ("4", "four", "4.0")),
        ("null", ()),
    ],
)
def test_answer_is_a_text_a_number_as_it_is_written_or_any_of_a_list(
    tmp_path: Path, value: str, answers: tuple[str, ...]
) -> None:
    example = _load(tmp_path, f'{{"prompt": "a", "answer": {value}}}')
    assert example.answers == answers
    assert example.answer == (answers[0] if answers else None)


@pytest.mark.parametrize("value", ["true", "[]", '["a", ""]', '" "', "{}", '[["a"]]', "[null]", "[false]"])
def test_answer_that_could_be_anything_or_nothing_is_refused(tmp_path: Path, value: str) -> None:
    with pytest.raises(InvalidDataError, match=r"data\.jsonl:1: 'answer' "):
        _load(tmp_path, f'{{"prompt": "a", "answer": {value}}}')


@pytest.mark.parametrize(("value", "text"), [(4, "4"), (4.5, "4.5"), (-1, "-1")])
def test_number_of_a_dataset_is_an_answer(value: float, text: str) -> None:
    assert parse_example({"prompt": "a", "answer": value}, index=0, where="").answer == text


@pytest.mark.parametrize("value", [True, float("nan"), float("inf")])
def test_what_is_no_number_of_a_dataset_is_none(value: float) -> None:
    with pytest.raises(InvalidDataError, match="row 3: 'answer' must be"):
        parse_example({"prompt": "a", "answer": value}, index=0, where="row 3")


def test_any_of_several_answers_is_right(student: Student) -> None:
    config = EvaluationConfig(max_new_tokens=5)
    said = evaluate(student, [Example(index=0, prompt="one", answer="x")], config=config).answers[0].answer
    wanted = said.strip()[:1] or "x"
    several = Example(index=0, prompt="one", answer="never said", other_answers=(wanted, "nor this"))
    (answer,) = evaluate(student, [several], config=config).answers
    assert answer.is_correct is said.strip().startswith(wanted)
    assert answer.expected == f"never said or {wanted} or nor this"


def test_extra_key_is_refused_with_the_setting_and_what_was_likely_meant(tmp_path: Path) -> None:
    with pytest.raises(
        InvalidDataError,
        match=r"unknown key 'teacher_promt': did you mean 'teacher_prompt'\? .*data\.extra_fields=ignore",
    ):
        _load(tmp_path, '{"prompt": "a", "teacher_promt": "b"}')
    with pytest.raises(InvalidDataError, match=r"unknown key 'id': Known are prompt, teacher_prompt, answer, task"):
        _load(tmp_path, '{"prompt": "a", "id": 7}')


def test_extra_keys_are_kept_under_the_setting_in_plain_values(tmp_path: Path) -> None:
    line = '{"prompt": "a", "rubric": [{"says": "b", "weight": 2.50}], "id": 7}'
    extra: JsonObject = {"id": 7, "rubric": [{"says": "b", "weight": 2.5}]}
    assert _load(tmp_path, line, extra_fields="keep") == Example(index=0, prompt="a", extra=extra)
    assert _load(tmp_path, '{"prompt": "a"}', extra_fields="keep") == Example(index=0, prompt="a")
    with pytest.raises(InvalidDataError, match=r"key 'id' .*half of a surrogate pair"):
        _load(tmp_path, '{"prompt": "a", "id": "b%"}'.replace("%", HALF), extra_fields="keep")


def test_extra_keys_are_ignored_under_the_setting_whatever_they_hold(tmp_path: Path) -> None:
    line = '{"id": %s, "meta": {"x": [1, {"y": null}]}, "prompt": "a"}' % ("9" * 5_000)
    assert _load(tmp_path, line, extra_fields="ignore") == Example(index=0, prompt="a")


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"messages": [{"role": "user", "content": "hi"}]}, "has no 'prompt': give the messages"),
        ({"prompt": [{"role": "user", "content": [{"type": "text", "text": "hi"}]}]}, "a text (no list of parts)"),
        ({"prompt": [{"role": "user", "content": None}]}, "its content must be a text"),
        ({"prompt": [{"role": "assistant", "content": "", "audio": []}]}, "nothing else; it is {'"),
        ({"prompt": [{"role": "assistant", "tool_calls": {}}]}, "message 0: its tool_calls must be a list"),
        ({"prompt": [{"role": "assistant", "tool_calls": [{}]}]}, "its tool_calls: number 0 must be {'type'"),
        (
            {"prompt": [{"role": "assistant", "tool_calls": [{"function": {"name": ""}}]}]},
            "its tool_calls: number 0: its name is empty",
        ),
        (
            {"prompt": [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{'a': 1}"}}]}]},
            "its tool_calls: number 0: its arguments: not JSON: ",
        ),
        ({"prompt": [{"role": "tool", "content": "4", "tool_call_id": 7}]}, "its tool_call_id must be a text"),
        ({"prompt": "a", "tools": {"name": "f"}}, "'tools' must be a list of JSON schemas"),
        ({"prompt": "a", "tools": [{"name": "f"}]}, "'tools' number 0 must be {'type': 'function'"),
        ({"prompt": "a", "tools": ["{"]}, "'tools' number 0: not JSON: "),
        ({"prompt": "a", "chat_template_kwargs": [1]}, "'chat_template_kwargs' holds a list, must be a JSON object"),
        ({"prompt": "a", "chat_template_kwargs": {"tokenize": True}}, "'chat_template_kwargs': 'tokenize' is no"),
        ({"prompt": "a", "teacher_chat_template_kwargs": {"a b": 1}}, "'teacher_chat_template_kwargs': 'a b' is no"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_refused_by_name(tmp_path: Path, row: dict[str, Any], expected: str) -> None:
    with pytest.raises(InvalidDataError) as caught:
        _load(tmp_path, json.dumps(row), extra_fields="ignore")
    assert expected in str(caught.value)


@pytest.mark.parametrize("name", sorted(RESERVED))
@pytest.mark.parametrize("key", ["chat_template_kwargs", "teacher_chat_template_kwargs"])
def test_a_variable_that_no_template_can_be_given_is_refused_where_it_is_read(key: str, name: str) -> None:
    with pytest.raises(InvalidDataError, match=f"row 3: '{key}': '{name}' is no variable of a chat template"):
        parse_example({"prompt": "a", key: {name: "x"}}, index=0, where="row 3")


def test_documents_are_given_to_a_template_that_reads_them(student: Student) -> None:
    row = {"prompt": [{"role": "user", "content": "hi"}], "chat_template_kwargs": {"documents": [{"text": "one "}]}}
    example = parse_example(row, index=0, where="")
    template = "{% for d in documents %}{{ d.text }}{% endfor %}{{ messages[0].content }}"
    tokenizer = copy(student.tokenizer)
    tokenizer.chat_template = template
    assert isinstance(example.prompt, tuple)
    assert render_chat(tokenizer, example.prompt, template_kwargs=example.chat_template_kwargs) == "one hi"


def test_conversation_with_tools_is_read_as_it_is_written(tmp_path: Path) -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": {"a": 1, "b": 2.5}}}
    as_text = {"function": {"name": "add", "arguments": '{"a": 1}'}}
    tool = {"type": "function", "function": {"name": "add", "parameters": {"maxItems": 3, "x": [1e3, True, None]}}}
    row = {
        "prompt": [
            {"role": "user", "content": "1 + 2.5", "name": "ada", "tool_calls": None},
            {"role": "assistant", "content": None, "tool_calls": [call, as_text], "reasoning_content": "easy"},
            {"role": "tool", "content": "3.5", "tool_call_id": "c1"},
        ],
        "tools": [tool],
        "chat_template_kwargs": {"enable_thinking": False},
        "teacher_chat_template_kwargs": {"depth": 3},
    }
    example = _load(tmp_path, json.dumps(row))
    assert example.prompt == (
        ChatMessage(role="user", content="1 + 2.5", name="ada"),
        ChatMessage(
            role="assistant",
            tool_calls=(
                ToolCall(name="add", arguments={"a": 1, "b": 2.5}, id="c1"),
                ToolCall(name="add", arguments={"a": 1}),
            ),
            reasoning_content="easy",
        ),
        ChatMessage(role="tool", content="3.5", tool_call_id="c1"),
    )
    assert [json.loads(text) for text in example.tools] == [tool]
    assert example.chat_template_kwargs == {"enable_thinking": False}
    assert example.teacher_chat_template_kwargs == {"depth": 3}
    hash(example)


def test_excerpts_are_short(tmp_path: Path) -> None:
    with pytest.raises(InvalidDataError) as caught:
        _load(tmp_path, json.dumps({"prompt": {"deep": [["x" * 10_000] * 100] * 100}}))
    assert len(str(caught.value)) < 300


def test_example_knows_where_it_stands(tmp_path: Path) -> None:
    example = _load(tmp_path, '{"prompt": [{"role": "user", "content": "hi"}], "task": "t"}')
    assert example.name == f"{tmp_path}/data.jsonl:1"
    assert example == Example(index=0, prompt=(ChatMessage(role="user", content="hi"),), task="t")


def test_each_teacher_may_have_a_prompt_of_its_own() -> None:
    own = {"law": "c", "code": [{"role": "user", "content": "d"}]}
    row = {"prompt": "a", "teacher_prompt": "b", "teacher_prompts": own}
    example = parse_example(row, index=0, where="x.jsonl:1")
    assert [example.prompt_of(name) for name in ("law", "other")] == ["c", "b"]
    assert example.prompt_of("code") == (ChatMessage(role="user", content="d"),)
    wrongs: list[object] = ["c", [], {}, {"law": ""}, {"law": 3}]
    for wrong in wrongs:
        with pytest.raises(InvalidDataError, match=r"x\.jsonl:1: 'teacher_prompts' "):
            parse_example({"prompt": "a", "teacher_prompts": wrong}, index=0, where="x.jsonl:1")
