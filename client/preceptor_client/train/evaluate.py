"""Measures a student on held-out examples: greedy answers, and how many are right. Knows nothing of training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from preceptor_client.train.config import EvaluationConfig
from preceptor_client.train.data import Example, ExamplePrompt, prompt_text
from preceptor_client.train.errors import InvalidDataError
from preceptor_client.train.rollout.generation import generate
from preceptor_client.train.student import Student

PromptsOf = Literal["student", "teacher"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One held-out example, answered."""

    prompt: str
    expected: str
    answer: str
    is_correct: bool


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
    student: Student, examples: Sequence[Example], *, config: EvaluationConfig, prompts: PromptsOf = "student"
) -> Evaluation:
    """Answers every example greedily, from the student's prompts or from the teacher's."""
    expected = [_expected_answer(example) for example in examples]
    encoded = [student.encode_prompt(_prompt_of(example, prompts=prompts)) for example in examples]
    responses: list[list[int]] = []
    for start in range(0, len(encoded), config.batch_size):
        batch = encoded[start : start + config.batch_size]
        responses += generate(student, batch, max_new_tokens=config.max_new_tokens, sampling=None)
    texts = [student.decode(response) for response in responses]
    return Evaluation(
        answers=tuple(
            Answer(
                prompt=prompt_text(example.prompt),
                expected=wanted,
                answer=text,
                is_correct=is_match(text, expected=wanted, match=config.match),
            )
            for example, wanted, text in zip(examples, expected, texts, strict=True)
        ),
        mean_answer_length=sum(map(len, responses)) / len(responses),
    )


def is_match(answer: str, *, expected: str, match: Literal["starts_with", "contains", "exact"]) -> bool:
    """Whether an answer counts as right. Case counts; white space around either does not."""
    answer, expected = answer.strip(), expected.strip()
    if match == "starts_with":
        return answer.startswith(expected)
    return expected in answer if match == "contains" else answer == expected


def _expected_answer(example: Example) -> str:
    if example.answer is None:
        raise InvalidDataError(
            f"data.heldout: example {example.index} has no answer to compare with: add one to each example, or to "
            "none and measure evaluation.loss"
        )
    return example.answer


def _prompt_of(example: Example, *, prompts: PromptsOf) -> ExamplePrompt:
    if prompts == "student":
        return example.prompt
    if example.teacher_prompt is None:
        raise InvalidDataError(f"data.heldout: example {example.index} has no teacher_prompt to measure")
    return example.teacher_prompt
