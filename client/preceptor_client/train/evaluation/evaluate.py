"""Measures a student on held-out examples: greedy answers, and how many are right. Knows nothing of training."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from preceptor_client.train.data.answer_match import is_match
from preceptor_client.train.data.examples import Example, prompt_text
from preceptor_client.train.errors import InvalidDataError
from preceptor_client.train.evaluation.config import EvaluationConfig
from preceptor_client.train.student.encoding import encode_example, encode_prompt
from preceptor_client.train.student.generation import generate
from preceptor_client.train.student.student import Student

PromptsOf = Literal["student", "teacher"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One held-out example, answered."""

    prompt: str
    expected: str
    """Several that are as right stand with "or" between."""
    answer: str
    is_correct: bool
    """False where nothing is expected."""
    example: Example
    response_ids: tuple[int, ...]
    """What `answer` is the text of; ends with the end token unless it was cut."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """All held-out examples, answered."""

    answers: tuple[Answer, ...]
    mean_answer_length: float
    """Tokens, the end token included."""

    @property
    def num_correct(self) -> int:
        return sum(answer.is_correct for answer in self.answers)

    @property
    def accuracy(self) -> float:
        return self.num_correct / len(self.answers)


def evaluate(
    student: Student,
    examples: Sequence[Example],
    *,
    config: EvaluationConfig,
    prompts: PromptsOf = "student",
    on_bad: Callable[[InvalidDataError], None] | None = None,
    needs_answers: bool = True,
) -> Evaluation:
    """Answers every example greedily, from the student's prompts or from the teacher's. An example whose prompt cannot
    be encoded is given to `on_bad` and left out; without it, InvalidDataError is raised. With `needs_answers`, an
    example without one is an InvalidDataError."""
    expected = [_expected_answers(example) if needs_answers else example.answers for example in examples]
    encoded: list[list[int]] = []
    left: list[tuple[Example, tuple[str, ...]]] = []
    for example, wanted in zip(examples, expected, strict=True):
        try:
            encoded.append(_encoded(student, example, prompts=prompts))
            left.append((example, wanted))
        except InvalidDataError as error:
            if on_bad is None:
                raise
            on_bad(error)
    if not left:
        raise InvalidDataError("data.heldout: no example is left to answer")
    responses: list[list[int]] = []
    for start in range(0, len(encoded), config.batch_size):
        batch = encoded[start : start + config.batch_size]
        responses += generate(student, batch, max_new_tokens=config.max_new_tokens, sampling=None)
    texts = [student.decode(response) for response in responses]
    return Evaluation(
        answers=tuple(
            Answer(
                prompt=prompt_text(example.prompt),
                expected=" or ".join(wanted),
                answer=text,
                is_correct=any(is_match(text, expected=one, match=config.match) for one in wanted),
                example=example,
                response_ids=tuple(response),
            )
            for (example, wanted), response, text in zip(left, responses, texts, strict=True)
        ),
        mean_answer_length=sum(map(len, responses)) / len(responses),
    )


def _expected_answers(example: Example) -> tuple[str, ...]:
    if not example.answers:
        raise InvalidDataError(
            f"data.heldout: {example.name} has no answer to compare with: add one to each example, or to none and "
            "measure evaluation.loss or evaluation.metrics"
        )
    return example.answers


def _encoded(student: Student, example: Example, *, prompts: PromptsOf) -> list[int]:
    if prompts == "student":
        return encode_example(student, example)
    if example.teacher_prompt is None:
        raise InvalidDataError(f"data.heldout: {example.name} has no teacher_prompt to measure")
    return encode_prompt(student, example.teacher_prompt, where=example.name, field="teacher_prompt")
