"""Checks that both sides can read every prompt of a run: templates and lengths. Asks nothing of a server."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from preceptor.wire import SegmentationPolicy

from preceptor_client.train.data.bad_examples import BadExamples, Source
from preceptor_client.train.data.examples import Example, ExamplePrompt
from preceptor_client.train.errors import InvalidDataError, UnsuitableTeacherError
from preceptor_client.train.evaluation.config import EvaluationConfig
from preceptor_client.train.student.encoding import encode_example, encode_prompt, encoded
from preceptor_client.train.student.student import Student
from preceptor_client.train.tasks.task import Task
from preceptor_client.train.teacher.agreement import Agreement
from preceptor_client.train.teacher.prompt_source import PromptSource
from preceptor_client.types import Chat, Limits


@dataclass(frozen=True, slots=True, kw_only=True)
class _Group:
    """One example and the number of responses that are scored with it."""

    name: str
    of: Source
    example: Example
    num_responses: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _Need:
    """Tokens that a group may need, and how many there are."""

    num_tokens: int
    limit: int
    what: str
    is_estimate: bool


def check_prompts(
    agreement: Agreement,
    *,
    limits: Limits,
    task: Task,
    prompts: PromptSource | None = None,
    student: Student,
    examples: Sequence[Example],
    heldout: Sequence[Example] = (),
    answered: Sequence[Example] = (),
    bad: BadExamples | None = None,
) -> tuple[str, ...]:
    """Warnings. Raises InvalidDataError or UnsuitableTeacherError for a prompt that one side cannot read; `bad` may
    take those that are the example's own fault.

    What the teacher's own tokenizer makes of a text is not known here: the student's length stands in for it, and one
    that is too long is a warning. `heldout` are those that the teacher scores, once each; `answered` those that the
    student answers greedily.
    """
    bad = BadExamples() if bad is None else bad
    prompts = prompts or PromptSource(is_one_to_one=agreement.is_one_to_one)
    num_responses, train, measured = task.rollout.responses_per_prompt, task.source("train"), task.source("heldout")
    groups = [_Group(name=one.name, of=train, example=one, num_responses=num_responses) for one in examples]
    groups += [
        _Group(name=one.where or f"held-out {one.name}", of=measured, example=one, num_responses=1) for one in heldout
    ]
    num_new = task.rollout.max_new_tokens
    too_long: dict[str, list[str]] = defaultdict(list)
    for group in groups:
        try:
            _check_names(group.example, task=task)
            _check_templates(group, agreement=agreement, prompts=prompts)
            theirs = prompts.own_prompt(group.example)
            needs = list(
                _needs(group, theirs=theirs, num_new=num_new, agreement=agreement, limits=limits, student=student)
            )
            for message, need in _exceeded(needs, num_new=num_new):
                if not need.is_estimate:
                    raise InvalidDataError(message, where=group.name)
                too_long[need.what].append(f"{group.name}: {message}")
        except InvalidDataError as error:
            bad.leave_out_unless_settled(error, of=group.of)
    for example in answered:
        try:
            _check_answered(example, config=task.evaluation, student=student)
        except InvalidDataError as error:
            bad.leave_out_unless_settled(error, of=measured)
    return tuple(
        f"{messages[0]} ({len(messages)} of {len(groups)} examples; counted with the student's tokenizer, an estimate)"
        for messages in too_long.values()
    )


def _exceeded(needs: Sequence[_Need], *, num_new: int) -> Iterator[tuple[str, _Need]]:
    for need in needs:
        if need.num_tokens > need.limit:
            yield (
                f"prompt and responses may need {need.num_tokens} tokens, {need.what} is {need.limit}: shorten the "
                f"prompt or lower rollout.max_new_tokens={num_new}",
                need,
            )


def _check_answered(example: Example, *, config: EvaluationConfig, student: Student) -> None:
    encode_example(student, example)
    if config.teacher_prompts and example.teacher_prompt is not None:
        encode_prompt(student, example.teacher_prompt, field="teacher_prompt", where=example.name)


def _check_names(example: Example, *, task: Task) -> None:
    if unknown := sorted(set(example.teacher_prompts) - set(task.teachers)):
        raise InvalidDataError(
            f"'teacher_prompts' names {unknown[0]!r}, and its task asks {', '.join(task.teachers)}", where=example.name
        )


def _check_templates(group: _Group, *, agreement: Agreement, prompts: PromptSource) -> None:
    prompt = prompts.of_example(group.example)
    if isinstance(prompt, Chat) and not agreement.teacher.has_chat_template:
        raise UnsuitableTeacherError(
            f"{group.name}: teacher {agreement.teacher.name!r} would read its prompt as a conversation, and has no "
            "chat template: give 'teacher_prompt' as a text, or take a teacher with a template"
        )


def _needs(
    group: _Group,
    *,
    theirs: ExamplePrompt | None,
    num_new: int,
    agreement: Agreement,
    limits: Limits,
    student: Student,
) -> Iterator[_Need]:
    """`theirs` is what the teacher reads instead of the student's prompt."""
    teacher = agreement.teacher
    num_prompt = len(encode_example(student, group.example, where=group.name))
    is_read_alike = teacher.tokenizer_id == student.tokenizer_id
    num_theirs = (
        num_prompt
        if theirs is None
        else _num_tokens(theirs, where=group.name, is_read_alike=is_read_alike, student=student)
    )
    yield _Need(
        num_tokens=num_prompt + num_new, limit=student.max_length, what="the student's context", is_estimate=False
    )
    # Under CANONICAL the teacher reads its own tokens, else the student's; and texts it always cuts by itself.
    is_estimate = agreement.policy is SegmentationPolicy.CANONICAL or (theirs is not None and not is_read_alike)
    num_all_new = num_new * group.num_responses
    yield _Need(
        num_tokens=num_theirs + num_new,
        limit=teacher.max_model_len,
        what=f"the context of teacher {teacher.name!r}",
        is_estimate=is_estimate,
    )
    yield _Need(
        num_tokens=num_theirs + num_all_new,
        limit=limits.max_group_tokens,
        what="the server's limit for one request",
        is_estimate=is_estimate,
    )


def _num_tokens(prompt: ExamplePrompt, *, where: str, is_read_alike: bool, student: Student) -> int:
    """Of a prompt that only the teacher has to be able to read. Its texts stand for a conversation that the teacher's
    template renders: the student's may refuse it."""
    if isinstance(prompt, str) or (is_read_alike and student.tokenizer.chat_template):
        return len(encoded(student, prompt, field="teacher_prompt", where=where))
    texts = "\n".join(message.content for message in prompt)
    return len(encoded(student, texts, field="teacher_prompt", where=where)) if texts.strip() else 1
