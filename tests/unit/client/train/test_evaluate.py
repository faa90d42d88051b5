from __future__ import annotations

from typing import Literal

import pytest
from preceptor_client.train.data.answer_match import is_match
from preceptor_client.train.data.examples import Example
from preceptor_client.train.errors import InvalidDataError
from preceptor_client.train.evaluation.config import EvaluationConfig
from preceptor_client.train.evaluation.evaluate import evaluate
from preceptor_client.train.student.generation import generate
from preceptor_client.train.student.student import Student

CONFIG = EvaluationConfig(max_new_tokens=5, batch_size=2)


@pytest.mark.parametrize(
    ("answer", "match", "expected"),
    [
        (" Oslo.", "starts_with", True),
        ("oslo", "starts_with", False),
        ("It is Oslo", "starts_with", False),
        ("It is Oslo", "contains", True),
        ("Oslo\n", "exact", True),
        ("Oslo.", "exact", False),
        ("", "starts_with", False),
    ],
)
def test_match(answer: str, match: Literal["starts_with", "contains", "exact"], expected: bool) -> None:
    assert is_match(answer, expected="Oslo", match=match) is expected


def test_answers_are_greedy_and_judged(student: Student) -> None:
    prompts = ["one", "two", "three"]
    greedy = [
        student.decode(generate(student, [student.encode_prompt(prompt)], max_new_tokens=5, sampling=None)[0])
        for prompt in prompts
    ]
    wanted = [greedy[0].strip()[:1] or "x", "never said", greedy[2].strip()[:1] or "x"]
    examples = [
        Example(index=index, prompt=prompt, answer=answer)
        for index, (prompt, answer) in enumerate(zip(prompts, wanted, strict=True))
    ]
    result = evaluate(student, examples, config=CONFIG)
    assert [answer.answer for answer in result.answers] == greedy
    assert result.num_correct == sum(
        is_match(a, expected=w, match="starts_with") for a, w in zip(greedy, wanted, strict=True)
    )
    assert result.accuracy == result.num_correct / 3
    assert not result.answers[1].is_correct


def test_teachers_prompts_are_answered_when_asked_for(student: Student) -> None:
    long = "an altogether different prompt"
    both = [Example(index=0, prompt="ab", teacher_prompt=long, answer="x")]
    theirs = evaluate(student, both, config=CONFIG, prompts="teacher")
    assert (
        theirs.answers[0].answer
        == evaluate(student, [Example(index=0, prompt=long, answer="x")], config=CONFIG).answers[0].answer
    )
    assert theirs.answers[0].answer != evaluate(student, both, config=CONFIG).answers[0].answer
    assert theirs.answers[0].prompt == "ab"


def test_example_without_answer_or_teacher_prompt_is_named(student: Student) -> None:
    with pytest.raises(InvalidDataError, match="example 7 has no answer"):
        evaluate(student, [Example(index=7, prompt="ab")], config=CONFIG)
    with pytest.raises(InvalidDataError, match="example 7 has no teacher_prompt"):
        evaluate(student, [Example(index=7, prompt="ab", answer="x")], config=CONFIG, prompts="teacher")
