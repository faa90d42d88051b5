from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from preceptor_client.train.data.examples import Example
from preceptor_client.train.errors import InvalidDataError, UnsuitableTeacherError
from preceptor_client.train.start.handshake import check_teacher
from preceptor_client.train.student.student import Student
from preceptor_client.train.teacher.agreement import Agreement
from preceptor_client.types import TeacherInfo

from tests.unit.client.train.fake_scorer import FakeScorer, teacher_info
from tests.unit.client.train.runs import task_of

EXAMPLES = [Example(index=0, prompt="ab", teacher_prompt="a longer one")]
Settings = dict[str, dict[str, Any]]  # Any: the leaves are whatever TOML holds


def _check(
    scorer: FakeScorer, settings: Settings, student: Student, *, examples: list[Example] = EXAMPLES
) -> Agreement:
    return check_teacher(scorer, task=task_of(settings), student=student, examples=examples)


def _host(scorer: FakeScorer, *teachers: TeacherInfo) -> None:
    scorer.server = replace(scorer.info(), teachers=teachers)


def test_only_teacher_needs_no_name(settings: Settings, student: Student, scorer: FakeScorer) -> None:
    assert _check(scorer, settings, student).teacher.name == "tiny"


def test_teacher_is_chosen_by_name_and_names_are_listed(
    settings: Settings, student: Student, scorer: FakeScorer
) -> None:
    _host(scorer, teacher_info(student, name="a"), teacher_info(student, name="b"))
    settings["teacher"]["name"] = "b"
    assert _check(scorer, settings, student).teacher.name == "b"
    for name in ("c", ""):
        settings["teacher"]["name"] = name
        with pytest.raises(UnsuitableTeacherError, match=r"set teacher\.name to one of: a, b"):
            _check(scorer, settings, student)


def test_adapter_is_agreed_on_with_its_revision(settings: Settings, student: Student, scorer: FakeScorer) -> None:
    _host(scorer, replace(teacher_info(student), adapters={"law": "r-law", "chess": "r-chess"}))
    assert _check(scorer, settings, student).revision == "1"
    settings["teacher"]["adapter"] = "law"
    agreement = _check(scorer, settings, student)
    assert (agreement.adapter, agreement.revision) == ("law", "r-law")


@pytest.mark.parametrize(
    ("adapters", "expected"), [({"law": "1", "chess": "2"}, "chess, law"), ({}, "none, so leave it empty")]
)
def test_adapter_that_is_not_loaded_is_refused_with_those_that_are(
    settings: Settings, student: Student, scorer: FakeScorer, adapters: dict[str, str], expected: str
) -> None:
    _host(scorer, replace(teacher_info(student), adapters=adapters))
    settings["teacher"]["adapter"] = "medicine"
    with pytest.raises(UnsuitableTeacherError, match=f"has no adapter 'medicine': .*loaded: {expected}"):
        _check(scorer, settings, student)


@pytest.mark.parametrize(
    ("section", "key", "value", "expected"),
    [
        ("teacher", "top_k", 65, "limit of 64: lower it"),
        ("rollout", "responses_per_prompt", 17, "limit of 16 per request"),
        ("teacher", "temperature", 0.5, "set teacher.temperature=1"),
        ("teacher", "reproducible", True, "set teacher.reproducible=false"),
    ],
)
def test_setting_that_the_teacher_cannot_honour_is_refused(
    settings: Settings, student: Student, scorer: FakeScorer, section: str, key: str, value: object, expected: str
) -> None:
    settings["rollout"]["batch_size"] = 32
    settings[section][key] = value
    plain = teacher_info(student)
    _host(scorer, replace(plain, capabilities=replace(plain.capabilities, temperature=False, batch_invariant=False)))
    with pytest.raises(UnsuitableTeacherError, match=expected):
        _check(scorer, settings, student)


def test_prompt_too_long_for_either_side_is_named(settings: Settings, student: Student, scorer: FakeScorer) -> None:
    long = [Example(index=0, prompt="a"), Example(index=1, prompt="a" * 251)]
    with pytest.raises(InvalidDataError, match=r"example 1: .* 257 tokens, the student's context is 256"):
        _check(scorer, settings, student, examples=long)
    _host(scorer, teacher_info(student, max_model_len=12))
    with pytest.raises(InvalidDataError, match=r"example 0: .* 18 tokens, the context of teacher 'tiny' is 12"):
        _check(scorer, settings, student)
