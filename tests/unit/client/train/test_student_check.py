from __future__ import annotations

from typing import Any

import pytest
from preceptor_client.train.data.examples import Example
from preceptor_client.train.errors import InvalidStudentError
from preceptor_client.train.start.student_check import check_student
from preceptor_client.train.student.student import Student, prepare_student
from tokenizers.processors import TemplateProcessing

from tests.families.zoo import FAMILIES, random_model
from tests.tiny import tiny_llama, tiny_tokenizer
from tests.unit.client.train.runs import task_of

Settings = dict[str, dict[str, Any]]  # Any: the leaves are whatever TOML holds

LIMIT = 28
"""Tokens beyond which the tiny Phi-3 takes its long rope."""


@pytest.fixture
def phi3() -> Student:
    return prepare_student(random_model(FAMILIES["phi3-longrope"]), tiny_tokenizer())


def _check(
    student: Student, settings: Settings, *, prompts: list[str], heldout: list[str] | None = None, **changes: Any
) -> tuple[str, ...]:
    settings = settings | {name: settings.get(name, {}) | change for name, change in changes.items()}
    return check_student(
        student,
        task=task_of(settings),
        examples=[Example(index=index, prompt=prompt) for index, prompt in enumerate(prompts)],
        heldout=[
            Example(index=index, prompt=prompt, teacher_prompt=prompt * 2) for index, prompt in enumerate(heldout or [])
        ],
    )


def test_a_rope_that_changes_in_mid_response_is_refused_with_the_setting_to_lower(
    phi3: Student, settings: Settings
) -> None:
    fits = {"max_new_tokens": LIMIT - 10}
    assert _check(phi3, settings, prompts=["a" * 10, "b"], rollout=fits) == ()
    with pytest.raises(
        InvalidStudentError,
        match=rf"more than {LIMIT} tokens.* \(11 tokens\) and rollout\.max_new_tokens=18 may need 29: lower "
        r"rollout\.max_new_tokens to at most 17, or leave out prompts of more than 10 tokens",
    ):
        _check(phi3, settings, prompts=["a" * 11, "b"], rollout=fits)


def test_prompts_past_the_rope_leave_no_room_to_lower(phi3: Student, settings: Settings) -> None:
    with pytest.raises(InvalidStudentError, match=r"may need 42: leave out prompts of more than 26 tokens"):
        _check(phi3, settings, prompts=["a" * 40], rollout={"max_new_tokens": 2})


@pytest.mark.parametrize(
    ("evaluation", "message"),
    [
        ({"max_new_tokens": 19}, r"\(10 tokens\) and evaluation\.max_new_tokens=19 .* to at most 18"),
        ({"max_new_tokens": 9, "teacher_prompts": True}, r"\(20 tokens\) and evaluation\.max_new_tokens=9 .* most 8"),
    ],
)
def test_held_out_answers_are_checked_too(
    evaluation: dict[str, Any], message: str, phi3: Student, settings: Settings
) -> None:
    data = {"heldout": "heldout.jsonl"}
    with pytest.raises(InvalidStudentError, match=message):
        _check(phi3, settings, prompts=["a"], heldout=["b" * 10], evaluation=evaluation, data=data)


def test_held_out_answers_past_the_students_context_are_refused(settings: Settings) -> None:
    student = prepare_student(tiny_llama(max_length=64), tiny_tokenizer())
    changes = {"evaluation": {"max_new_tokens": 60}, "data": {"heldout": "heldout.jsonl"}}
    with pytest.raises(InvalidStudentError, match=r"evaluation\.max_new_tokens=60 may need 65 .* context is 64"):
        _check(student, settings, prompts=["a"], heldout=["abcde"], **changes)


def test_ways_are_asked_for_the_longest_text_and_told_where_they_are_slow(settings: Settings) -> None:
    student = prepare_student(random_model(FAMILIES["rwkv"]), tiny_tokenizer())
    (warning,) = _check(student, settings, prompts=["a" * 50])
    assert warning.startswith("the student answers prompts one at a time")


def test_a_beginning_that_the_text_has_and_the_tokenizer_adds_is_told(settings: Settings) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.bos_token = "<|im_start|>"
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|im_start|> $A", special_tokens=[("<|im_start|>", 1)]
    )
    student = prepare_student(tiny_llama(), tokenizer)
    (warning,) = _check(student, settings, prompts=["a", "<|im_start|>b", "<|im_start|>c"])
    assert warning.startswith("2 of 3 prompts begin with '<|im_start|>' twice")


def test_what_was_found_of_the_tokenizer_is_told(settings: Settings) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    (warning,) = _check(prepare_student(tiny_llama(), tokenizer), settings, prompts=["a"])
    assert "'[PAD]' (259) has no row" in warning
