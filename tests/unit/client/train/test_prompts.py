from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from preceptor.wire import SegmentationPolicy
from preceptor_client.train.data.examples import Example
from preceptor_client.train.errors import InvalidDataError, UnsuitableTeacherError
from preceptor_client.train.start.prompts import check_prompts
from preceptor_client.train.student.student import Student
from preceptor_client.train.teacher.agreement import Agreement
from preceptor_client.types import ChatMessage

from tests.unit.client.train.fake_scorer import REPORT, FakeScorer, agreement_with
from tests.unit.client.train.runs import task_of

Settings = dict[str, dict[str, Any]]  # Any: the leaves are whatever TOML holds

CONVERSATION = (ChatMessage(role="user", content="hi"),)
FOREIGN = replace(REPORT, is_one_to_one=False)
LONG = [Example(index=4, prompt="ab"), Example(index=5, prompt="a" * 20), Example(index=6, prompt="a" * 30)]


def _other(student: Student, *, has_chat_template: bool = True, max_model_len: int = 256) -> Agreement:
    """A teacher with another tokenizer."""
    agreement = agreement_with(student, report=FOREIGN, policy=SegmentationPolicy.CANONICAL)
    teacher = replace(
        agreement.teacher, tokenizer_id="feed", has_chat_template=has_chat_template, max_model_len=max_model_len
    )
    return replace(agreement, teacher=teacher)


@pytest.fixture
def check(settings: Settings, student: Student, scorer: FakeScorer) -> Any:  # Any: a function of keywords
    def run(agreement: Agreement, *, examples: list[Example], **more: Any) -> tuple[str, ...]:  # Any: as above
        return check_prompts(
            agreement, limits=scorer.info().limits, task=task_of(settings), student=student, examples=examples, **more
        )

    return run


def test_length_for_another_tokenizer_is_an_estimate_and_a_warning(check: Any, student: Student) -> None:
    (warning,) = check(_other(student, max_model_len=24), examples=LONG)
    assert "example 5: prompt and responses may need 26 tokens, the context of teacher 'tiny' is 24" in warning
    assert "2 of 3 examples" in warning
    assert "an estimate" in warning


def test_students_own_context_is_never_an_estimate(check: Any, student: Student) -> None:
    with pytest.raises(InvalidDataError, match="the student's context is 256"):
        check(_other(student), examples=[Example(index=0, prompt="a" * 251)])


def test_conversation_for_a_teacher_without_a_template_is_refused_unless_a_text_stands_in(
    check: Any, student: Student
) -> None:
    plain = _other(student, has_chat_template=False)
    with pytest.raises(UnsuitableTeacherError, match=r"example 0: .*give 'teacher_prompt' as a text, or take"):
        check(plain, examples=[Example(index=0, prompt=CONVERSATION)])
    with pytest.raises(UnsuitableTeacherError, match="held-out example 3: "):
        check(plain, examples=[], heldout=[Example(index=3, prompt=CONVERSATION)])
    assert check(plain, examples=[Example(index=0, prompt=CONVERSATION, teacher_prompt="say hi")]) == ()
    assert check(plain, examples=[Example(index=0, prompt="say hi")]) == ()


def test_equal_ids_need_no_template_of_the_teacher(check: Any, student: Student) -> None:
    agreement = agreement_with(student)
    agreement = replace(agreement, teacher=replace(agreement.teacher, has_chat_template=False))
    assert check(agreement, examples=[Example(index=0, prompt=CONVERSATION)]) == ()
    with pytest.raises(UnsuitableTeacherError, match="no chat template"):
        check(agreement, examples=[Example(index=0, prompt="hi", teacher_prompt=CONVERSATION)])


def test_student_without_a_template_may_have_a_teacher_that_reads_conversations(check: Any, student: Student) -> None:
    student.tokenizer.chat_template = None
    assert check(_other(student), examples=[Example(index=0, prompt="hi", teacher_prompt=CONVERSATION)]) == ()
    with pytest.raises(InvalidDataError, match=r"example 0: .*the student's tokenizer has no chat template"):
        check(_other(student), examples=[Example(index=0, prompt=CONVERSATION)])


def test_heldout_examples_are_scored_once_each(check: Any, student: Student, settings: Settings) -> None:
    """Two responses of 250 tokens to a prompt of two are more than 300, one is not."""
    settings["rollout"]["max_new_tokens"] = 250
    agreement = agreement_with(student)
    limits = replace(FakeScorer(teacher=student).info().limits, max_group_tokens=300)
    task = task_of(settings)
    two = [Example(index=0, prompt="ab")]
    assert check_prompts(agreement, limits=limits, task=task, student=student, examples=[], heldout=two) == ()
    with pytest.raises(InvalidDataError, match="502 tokens, the server's limit for one request is 300"):
        check_prompts(agreement, limits=limits, task=task, student=student, examples=two)


def test_a_prompt_for_a_teacher_that_the_task_does_not_ask_is_refused(check: Any, student: Student) -> None:
    example = Example(index=2, prompt="a", teacher_prompts={"lore": "b"})
    with pytest.raises(InvalidDataError, match=r"example 2: 'teacher_prompts' names 'lore', and its task asks teacher"):
        check(agreement_with(student), examples=[example])
