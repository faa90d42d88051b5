"""What a student's chat template and tokenizer may do to a prompt, told as the example's fault."""

from __future__ import annotations

import pytest
import torch
from preceptor_client.errors import PreceptorError
from preceptor_client.train.errors import InvalidDataError, InvalidStudentError
from preceptor_client.train.student.encoding import encode_prompt
from preceptor_client.train.student.student import Student
from preceptor_client.types import ChatMessage

CONVERSATION = (ChatMessage(role="system", content="be brief"), ChatMessage(role="user", content="hi"))
NO_SYSTEM = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}hi"
"""As Gemma's and Mistral's."""


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (NO_SYSTEM, "System role not supported"),
        ("{{ messages[0]['content'] + 1 }}", "TypeError: "),
        ("{{ messages[7]['content'] }}", "UndefinedError: "),
        ("{{ 1 // 0 }}", "ZeroDivisionError: "),
        ("{% for message in messages %}", "TemplateSyntaxError: "),
        ("{{ ''.__class__.__mro__ }}{{ messages.append(1) }}", "SecurityError: "),
        ("{{ messages | map(attribute='a.b') | list | join + none }}", "Error: "),
        ("{{ range(100000000) | list }}", "OverflowError: "),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "RecursionError: "),
        ("{{ '%d' % messages }}", "TypeError: "),
        ("{{ int('x') }}", "UndefinedError: "),
        ("{{ raise_exception('x' * 100000) }}", "xxx ..."),
    ],
)
def test_whatever_a_template_raises_is_told_with_the_example(student: Student, template: str, expected: str) -> None:
    student.tokenizer.chat_template = template
    with pytest.raises(InvalidDataError) as caught:
        encode_prompt(student, CONVERSATION, where="train.jsonl:17")
    message = str(caught.value)
    assert message.startswith("train.jsonl:17: the student's chat template refuses its prompt: ")
    assert expected in message
    assert len(message) < 600


def test_what_this_library_raises_on_purpose_passes(student: Student, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: Student, prompt: object, **options: object) -> list[int]:
        raise InvalidStudentError("the student has several templates")

    monkeypatch.setattr(Student, "encode_prompt", fail)
    with pytest.raises(PreceptorError, match="the student has several templates"):
        encode_prompt(student, "hi", where="train.jsonl:17")


def test_prompt_without_tokens_is_refused(student: Student) -> None:
    student.tokenizer.chat_template = "{# nothing #}"
    with pytest.raises(InvalidDataError, match=r"^train\.jsonl:17: its prompt has no tokens"):
        encode_prompt(student, CONVERSATION, where="train.jsonl:17")


def test_token_beyond_the_models_rows_is_named(student: Student) -> None:
    """A pad that was added to the tokenizer, and not to the model, whose id is the number of rows."""
    student.tokenizer.add_special_tokens({"additional_special_tokens": ["[NEW]"]})
    assert student.tokenizer.convert_tokens_to_ids("[NEW]") == 259
    with pytest.raises(InvalidDataError, match=r"has token '\[NEW\]' \(id 259\), .* rows for ids below 259: add rows"):
        encode_prompt(student, "say [NEW]", where="train.jsonl:17")
    assert encode_prompt(student, "say", where="train.jsonl:17") == student.encode_prompt("say")


def test_model_with_more_rows_than_tokens_reads_them_all(student: Student) -> None:
    with torch.no_grad():
        student.model.resize_token_embeddings(264, mean_resizing=False)
    student.tokenizer.add_special_tokens({"additional_special_tokens": ["[NEW]"]})
    assert 259 in encode_prompt(student, "say [NEW]", where="train.jsonl:17")
