"""Whether both sides can read every prompt of a run: templates and lengths. Asks nothing of a server."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from preceptor.wire import SegmentationPolicy

from preceptor_client.train.agreement import Agreement
from preceptor_client.train.config import RunConfig
from preceptor_client.train.data import Example, ExamplePrompt
from preceptor_client.train.errors import InvalidDataError, UnsuitableTeacherError
from preceptor_client.train.scoring import teacher_prompt
from preceptor_client.train.student import Student
from preceptor_client.types import Chat, Limits


@dataclass(frozen=True, slots=True, kw_only=True)
class _Group:
    """One example and the number of responses that are scored with it."""

    name: str
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
    config: RunConfig,
    student: Student,
    examples: Sequence[Example],
    heldout: Sequence[Example] = (),
) -> tuple[str, ...]:
    """Warnings. Raises InvalidDataError or UnsuitableTeacherError for a prompt that one side cannot read.

    What the teacher's own tokenizer makes of a text is not known here: the student's length stands in for it, and one
    that is too long is a warning. `heldout` are those that the teacher scores, once each.
    """
    groups = [
        _Group(name=f"example {one.index}", example=one, num_responses=config.rollout.responses_per_prompt)
        for one in examples
    ]
    groups += [_Group(name=f"held-out example {one.index}", example=one, num_responses=1) for one in heldout]
    num_new = config.rollout.max_new_tokens
    too_long: dict[str, list[str]] = defaultdict(list)
    for group in groups:
        _check_templates(group, agreement=agreement, student=student)
        for need in _needs(group, num_new=num_new, agreement=agreement, limits=limits, student=student):
            if need.num_tokens <= need.limit:
                continue
            message = (
                f"{group.name}: prompt and responses may need {need.num_tokens} tokens, {need.what} is {need.limit}: "
                f"shorten the prompt or lower rollout.max_new_tokens={num_new}"
            )
            if not need.is_estimate:
                raise InvalidDataError(message)
            too_long[need.what].append(message)
    return tuple(
        f"{messages[0]} ({len(messages)} of {len(groups)} examples; counted with the student's tokenizer, an estimate)"
        for messages in too_long.values()
    )


def _check_templates(group: _Group, *, agreement: Agreement, student: Student) -> None:
    if not isinstance(group.example.prompt, str) and not student.tokenizer.chat_template:
        raise InvalidDataError(
            f"{group.name}: its prompt is a conversation, and the student's tokenizer has no chat template: give the "
            "prompt as a text, or put a template into the student's folder"
        )
    prompt = teacher_prompt(group.example, prompt_ids=(), is_one_to_one=agreement.is_one_to_one)
    if isinstance(prompt, Chat) and not agreement.teacher.has_chat_template:
        raise UnsuitableTeacherError(
            f"{group.name}: teacher {agreement.teacher.name!r} would read its prompt as a conversation, and has no "
            "chat template: give 'teacher_prompt' as a text, or take a teacher with a template"
        )


def _needs(group: _Group, *, num_new: int, agreement: Agreement, limits: Limits, student: Student) -> Iterator[_Need]:
    teacher, theirs = agreement.teacher, group.example.teacher_prompt
    num_prompt = len(student.encode_prompt(group.example.prompt))
    num_theirs = num_prompt if theirs is None else _num_tokens(theirs, student=student)
    if not num_prompt or not num_theirs:
        raise InvalidDataError(f"{group.name}: a prompt of no tokens cannot be answered")
    yield _Need(
        num_tokens=num_prompt + num_new, limit=student.max_length, what="the student's context", is_estimate=False
    )
    # Under CANONICAL the teacher reads its own tokens, else the student's; and texts it always cuts by itself.
    is_estimate = agreement.policy is SegmentationPolicy.CANONICAL or (
        theirs is not None and teacher.tokenizer_id != student.tokenizer_id
    )
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


def _num_tokens(prompt: ExamplePrompt, *, student: Student) -> int:
    """Of a prompt that only the teacher has to be able to read."""
    if isinstance(prompt, str) or student.tokenizer.chat_template:
        return len(student.encode_prompt(prompt))
    return sum(len(student.encode_prompt(message.content)) for message in prompt)
