"""Checks before the first step how the student can be run on the run's longest text. Asks no teacher."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from preceptor_client.train.data.examples import Example
from preceptor_client.train.errors import InvalidDataError, InvalidStudentError
from preceptor_client.train.student.encoding import encode_example
from preceptor_client.train.student.student import Student
from preceptor_client.train.student.vocabulary import begins_twice
from preceptor_client.train.tasks.task import Task


@dataclass(frozen=True, slots=True, kw_only=True)
class _Longest:
    """The longest text of one use."""

    setting: str
    num_new: int
    num_prompt: int

    @property
    def num_tokens(self) -> int:
        return self.num_prompt + self.num_new


def check_student(
    student: Student, *, task: Task, examples: Sequence[Example], heldout: Sequence[Example]
) -> tuple[str, ...]:
    """Warnings. Raises InvalidStudentError for texts that are too long for the student, and names the setting."""
    prompts = list(_encoded(student, examples))
    uses = list(_uses(student, prompts, task=task, heldout=heldout))
    for use in uses:
        _check_context(use, student=student)
    longest = max(uses, key=lambda use: use.num_tokens)
    limit = student.ways.constant_up_to(longest.num_tokens)
    for use in uses:
        if limit is not None and use.num_tokens > limit:
            raise InvalidStudentError(_too_long(use, limit=limit, student=student))
    ways = student.ways.up_to(longest.num_tokens)
    return (*student.notes, *ways.warnings, *_doubled(student, prompts))


def _uses(
    student: Student, prompts: Sequence[list[int]], *, task: Task, heldout: Sequence[Example]
) -> Iterator[_Longest]:
    def longest(of: Sequence[list[int]], setting: str, num_new: int) -> _Longest:
        return _Longest(setting=setting, num_new=num_new, num_prompt=max(map(len, of), default=0))

    own, to_answer = task.rollout.max_new_tokens, task.evaluation.max_new_tokens
    measured = list(_encoded(student, heldout))
    yield longest(prompts, "rollout.max_new_tokens", own)
    if measured:
        yield longest(measured, "evaluation.max_new_tokens", to_answer)
    if measured and task.evaluation.loss:
        yield longest(measured, "rollout.max_new_tokens", own)
    if task.evaluation.teacher_prompts:
        theirs = [
            Example(index=one.index, prompt=one.teacher_prompt) for one in heldout if one.teacher_prompt is not None
        ]
        yield longest(list(_encoded(student, theirs)), "evaluation.max_new_tokens", to_answer)


def _encoded(student: Student, examples: Sequence[Example]) -> Iterator[list[int]]:
    """Those that can be encoded: the others are told elsewhere."""
    for example in examples:
        try:
            yield encode_example(student, example)
        except InvalidDataError:
            continue


def _check_context(use: _Longest, *, student: Student) -> None:
    if use.num_tokens > student.max_length:
        raise InvalidStudentError(
            f"the longest prompt ({use.num_prompt} tokens) and {use.setting}={use.num_new} may need {use.num_tokens} "
            f"tokens, and the student's context is {student.max_length}: lower {use.setting}, or shorten the prompt"
        )


def _too_long(use: _Longest, *, limit: int, student: Student) -> str:
    room = limit - use.num_prompt
    lower = f"lower {use.setting} to at most {room}, or " if room > 0 else ""
    return (
        f"student.model: {type(student.model).__name__} computes all tokens of a text otherwise once it has more than "
        f"{limit} tokens (a rope that depends on the length: longrope, dynamic), so that a response would change while "
        f"it is written: the longest prompt ({use.num_prompt} tokens) and {use.setting}={use.num_new} may need "
        f"{use.num_tokens}: {lower}leave out prompts of more than {max(0, limit - use.num_new)} tokens"
    )


def _doubled(student: Student, prompts: Sequence[list[int]]) -> tuple[str, ...]:
    num_doubled = sum(begins_twice(student.tokenizer, ids) for ids in prompts)
    if not num_doubled:
        return ()
    return (
        f"{num_doubled} of {len(prompts)} prompts begin with {student.tokenizer.bos_token!r} twice, once by their text "
        "and once by the tokenizer: leave it out of data.train, or give conversations",
    )
