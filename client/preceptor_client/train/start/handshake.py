"""Checks before the first step that a server hosts a teacher that fits the student, the settings and the data."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace

from preceptor_client.train.data.bad_examples import BadExamples
from preceptor_client.train.data.examples import Example
from preceptor_client.train.errors import UnsuitableTeacherError
from preceptor_client.train.start.example_check import check_examples, checked_sample
from preceptor_client.train.start.objective_fit import check_objective, objective_warnings
from preceptor_client.train.start.student_check import check_student
from preceptor_client.train.student.student import Student
from preceptor_client.train.tasks.task import Task
from preceptor_client.train.teacher.agreement import Agreement
from preceptor_client.train.teacher.alignment import align
from preceptor_client.train.teacher.config import TeacherConfig
from preceptor_client.train.teacher.prompt_source import PromptMaker, PromptSource
from preceptor_client.train.teacher.scorer import Scorer
from preceptor_client.types import Limits, ServerInfo, TeacherInfo

_log = logging.getLogger(__name__)


def _tell_nobody(text: str) -> None:
    del text


def check_teacher(
    scorer: Scorer,
    *,
    task: Task,
    name: str = "",
    prompt_maker: PromptMaker | None = None,
    student: Student,
    examples: Sequence[Example],
    heldout: Sequence[Example] = (),
    bad: BadExamples | None = None,
    notice: Callable[[str], None] = _tell_nobody,
) -> Agreement:
    """One teacher of a task and what was agreed with it; its server knows the student's tokenizer then. `name` is that
    of [teachers.NAME]; empty takes the first; `prompt_maker` makes its prompts, if a part does.
    Raises UnsuitableTeacherError or InvalidDataError, which name what to change; `bad` may take what is an example's
    own fault, and `notice` hears what takes a while."""
    bad = BadExamples() if bad is None else bad
    config = task.teachers[name] if name else task.teacher
    info = scorer.info()
    teacher = _find(info, name=config.name)
    _check_settings(teacher, info.limits, config=config, num_responses=task.rollout.responses_per_prompt)
    agreement = align(scorer, teacher=teacher, config=config, student=student)
    check_objective(agreement, info.limits, objective=task.objective, student=student)
    warnings = check_examples(
        scorer,
        agreement=agreement,
        limits=info.limits,
        task=task,
        teacher=config,
        prompts=PromptSource(
            is_one_to_one=agreement.is_one_to_one,
            teacher=name or next(iter(task.teachers)),
            maker=prompt_maker,
            chat_template_kwargs=config.chat_template_kwargs,
        ),
        student=student,
        examples=examples,
        heldout=heldout,
        bad=bad,
        notice=notice,
    )
    agreement = replace(
        agreement,
        adapter=config.adapter,
        warnings=(
            *agreement.warnings,
            *objective_warnings(task.objective, rollout=task.rollout, temperature=task.temperature, credit=task.credit),
            *warnings,
            *_check_lengths(student, task=task, examples=examples, heldout=heldout, bad=bad),
        ),
    )
    _log.info(
        "teacher found: name=%s model=%s adapter=%r revision=%s",
        *(teacher.name, teacher.model, agreement.adapter, agreement.revision),
    )
    for warning in agreement.warnings:
        _log.warning("%s", warning)
    return agreement


def _check_lengths(
    student: Student, *, task: Task, examples: Sequence[Example], heldout: Sequence[Example], bad: BadExamples
) -> tuple[str, ...]:
    """Of the examples that are left; of very many, of those that were checked."""
    train = checked_sample(bad.left(examples, of=task.source("train")), seed=task.seed)
    measured = checked_sample(bad.left(heldout, of=task.source("heldout")), seed=task.seed)
    return check_student(student, task=task, examples=train, heldout=measured)


def _find(info: ServerInfo, *, name: str) -> TeacherInfo:
    names = ", ".join(teacher.name for teacher in info.teachers) or "none"
    if not name and len(info.teachers) == 1:
        return info.teachers[0]
    for teacher in info.teachers:
        if name and teacher.name == name:
            return teacher
    wanted = f"no teacher named {name!r}" if name else "more teachers than one, or none"
    raise UnsuitableTeacherError(f"the server hosts {wanted}: set teacher.name to one of: {names}")


def _check_settings(teacher: TeacherInfo, limits: Limits, *, config: TeacherConfig, num_responses: int) -> None:
    if config.adapter and config.adapter not in teacher.adapters:
        names = ", ".join(sorted(teacher.adapters)) or "none, so leave it empty"
        raise UnsuitableTeacherError(
            f"teacher {teacher.name!r} has no adapter {config.adapter!r}: set teacher.adapter to one of those "
            f"that are loaded: {names}"
        )
    if config.top_k > limits.max_top_k:
        raise UnsuitableTeacherError(
            f"teacher.top_k={config.top_k} is above the server's limit of {limits.max_top_k}: lower it"
        )
    if num_responses > limits.max_responses:
        raise UnsuitableTeacherError(
            f"rollout.responses_per_prompt={num_responses} is above the server's limit of "
            f"{limits.max_responses} per request: lower it"
        )
    if config.temperature != 1.0 and not teacher.capabilities.temperature:
        raise UnsuitableTeacherError(
            f"teacher {teacher.name!r} scores at temperature 1 only: set teacher.temperature=1"
        )
    if config.reproducible and not teacher.capabilities.batch_invariant:
        raise UnsuitableTeacherError(
            f"teacher {teacher.name!r} cannot give reproducible scores: set teacher.reproducible=false"
        )
