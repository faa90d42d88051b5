"""Before the first step: does the server host a teacher that fits this student, these settings and this data?"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace

from preceptor_client.train.data.bad_examples import BadExamples
from preceptor_client.train.data.examples import Example
from preceptor_client.train.errors import UnsuitableTeacherError
from preceptor_client.train.run.config import RunConfig
from preceptor_client.train.start.examples import check_examples, checked_sample
from preceptor_client.train.start.objective_fit import check_objective, check_parts, objective_warnings
from preceptor_client.train.start.student_check import check_student
from preceptor_client.train.student.student import Student
from preceptor_client.train.teacher.agreement import Agreement
from preceptor_client.train.teacher.alignment import align
from preceptor_client.train.teacher.scoring import Scorer
from preceptor_client.types import Limits, ServerInfo, TeacherInfo

_log = logging.getLogger(__name__)


def _tell_nobody(text: str) -> None:
    del text


def check_teacher(
    scorer: Scorer,
    *,
    config: RunConfig,
    student: Student,
    examples: Sequence[Example],
    heldout: Sequence[Example] = (),
    bad: BadExamples | None = None,
    notice: Callable[[str], None] = _tell_nobody,
) -> Agreement:
    """The teacher to ask and what was agreed with it; its server knows the student's tokenizer then. Raises
    UnsuitableTeacherError or InvalidDataError, which name what to change; `bad` may take what is an example's own
    fault, and `notice` hears what takes a while."""
    bad = BadExamples() if bad is None else bad
    check_parts(objective=config.objective, weights=config.weights, credit=config.credit)
    info = scorer.info()
    teacher = _find(info, name=config.teacher.name)
    _check_settings(teacher, info.limits, config=config)
    agreement = align(scorer, teacher=teacher, config=config.teacher, student=student)
    check_objective(agreement, info.limits, objective=config.objective, student=student)
    warnings = check_examples(
        scorer,
        agreement=agreement,
        limits=info.limits,
        config=config,
        student=student,
        examples=examples,
        heldout=heldout,
        bad=bad,
        notice=notice,
    )
    agreement = replace(
        agreement,
        adapter=config.teacher.adapter,
        warnings=(
            *agreement.warnings,
            *objective_warnings(
                config.objective,
                rollout=config.rollout,
                temperature=config.teacher.temperature,
                credit=config.credit,
            ),
            *warnings,
            *_check_lengths(student, config=config, examples=examples, heldout=heldout, bad=bad),
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
    student: Student, *, config: RunConfig, examples: Sequence[Example], heldout: Sequence[Example], bad: BadExamples
) -> tuple[str, ...]:
    """Of the examples that are left; of very many, of those that were checked."""
    train = checked_sample(bad.left(examples, of="train"), seed=config.run.seed)
    measured = checked_sample(bad.left(heldout, of="heldout"), seed=config.run.seed)
    return check_student(student, config=config, examples=train, heldout=measured)


def _find(info: ServerInfo, *, name: str) -> TeacherInfo:
    names = ", ".join(teacher.name for teacher in info.teachers) or "none"
    if not name and len(info.teachers) == 1:
        return info.teachers[0]
    for teacher in info.teachers:
        if name and teacher.name == name:
            return teacher
    wanted = f"no teacher named {name!r}" if name else "more teachers than one, or none"
    raise UnsuitableTeacherError(f"the server hosts {wanted}: set teacher.name to one of: {names}")


def _check_settings(teacher: TeacherInfo, limits: Limits, *, config: RunConfig) -> None:
    if config.teacher.adapter and config.teacher.adapter not in teacher.adapters:
        names = ", ".join(sorted(teacher.adapters)) or "none, so leave it empty"
        raise UnsuitableTeacherError(
            f"teacher {teacher.name!r} has no adapter {config.teacher.adapter!r}: set teacher.adapter to one of those "
            f"that are loaded: {names}"
        )
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
