"""Before the first step: does the server host a teacher that fits this student, these settings and this data?"""

from __future__ import annotations

import logging
from collections.abc import Sequence

from preceptor.fingerprint import vocabulary_id

from preceptor_client.train.config import RunConfig
from preceptor_client.train.data import Example
from preceptor_client.train.errors import InvalidDataError, UnsuitableTeacherError
from preceptor_client.train.student import Student
from preceptor_client.types import Limits, ServerInfo, TeacherInfo

_log = logging.getLogger(__name__)


def check_teacher(info: ServerInfo, *, config: RunConfig, student: Student, examples: Sequence[Example]) -> TeacherInfo:
    """The teacher to ask. Raises UnsuitableTeacherError or InvalidDataError, which name what to change."""
    teacher = _find(info, name=config.teacher.name)
    _check_tokenizer(teacher, student=student)
    _check_settings(teacher, info.limits, config=config)
    _check_lengths(teacher, info.limits, config=config, student=student, examples=examples)
    _log.info("teacher found: name=%s model=%s revision=%s", teacher.name, teacher.model, teacher.revision)
    return teacher


def _find(info: ServerInfo, *, name: str) -> TeacherInfo:
    names = ", ".join(teacher.name for teacher in info.teachers) or "none"
    if not name and len(info.teachers) == 1:
        return info.teachers[0]
    for teacher in info.teachers:
        if name and teacher.name == name:
            return teacher
    wanted = f"no teacher named {name!r}" if name else "more teachers than one, or none"
    raise UnsuitableTeacherError(f"the server hosts {wanted}: set teacher.name to one of: {names}")


def _check_tokenizer(teacher: TeacherInfo, *, student: Student) -> None:
    if teacher.tokenizer_id == student.tokenizer_id:
        return
    ours = vocabulary_id(student.tokenizer.backend_tokenizer.to_str())
    fix = (
        "their vocabularies are the same, so the chat template, the normaliser or the merges differ: put the teacher's "
        "tokenizer files into the student's folder"
        if ours == teacher.vocabulary_id
        else "train a student that shares the teacher's tokenizer"
    )
    raise UnsuitableTeacherError(
        f"the student's tokenizer ({student.tokenizer_id}) is not that of teacher {teacher.name!r} "
        f"({teacher.tokenizer_id}), and scores would belong to other tokens: {fix}"
    )


def _check_settings(teacher: TeacherInfo, limits: Limits, *, config: RunConfig) -> None:
    if config.teacher.top_k > limits.max_top_k:
        raise UnsuitableTeacherError(
            f"teacher.top_k={config.teacher.top_k} is above the server's limit of {limits.max_top_k}: lower it"
        )
    if config.rollout.responses_per_prompt > limits.max_responses:
        raise UnsuitableTeacherError(
            f"rollout.responses_per_prompt={config.rollout.responses_per_prompt} is above the server's limit of "
            f"{limits.max_responses} per request: lower it"
        )
    if config.teacher.temperature != 1.0 and not teacher.capabilities.temperature:
        raise UnsuitableTeacherError(
            f"teacher {teacher.name!r} scores at temperature 1 only: set teacher.temperature=1"
        )
    if config.teacher.reproducible and not teacher.capabilities.batch_invariant:
        raise UnsuitableTeacherError(
            f"teacher {teacher.name!r} cannot give reproducible scores: set teacher.reproducible=false"
        )


def _check_lengths(
    teacher: TeacherInfo, limits: Limits, *, config: RunConfig, student: Student, examples: Sequence[Example]
) -> None:
    """Both sides share a tokenizer, so the teacher's prompts can be measured here too."""
    num_new = config.rollout.max_new_tokens
    num_all_new = num_new * config.rollout.responses_per_prompt
    for example in examples:
        num_prompt = len(student.encode_prompt(example.prompt))
        num_theirs = num_prompt
        if example.teacher_prompt is not None:
            num_theirs = len(student.encode_prompt(example.teacher_prompt))
        if not num_prompt or not num_theirs:
            raise InvalidDataError(f"example {example.index}: a prompt of no tokens cannot be answered")
        for num_tokens, limit, what in (
            (num_prompt + num_new, student.max_length, "the student's context"),
            (num_theirs + num_new, teacher.max_model_len, f"the context of teacher {teacher.name!r}"),
            (num_theirs + num_all_new, limits.max_group_tokens, "the server's limit for one request"),
        ):
            if num_tokens > limit:
                raise InvalidDataError(
                    f"example {example.index}: prompt and responses may need {num_tokens} tokens, {what} is {limit}: "
                    f"shorten the prompt or lower rollout.max_new_tokens={num_new}"
                )
