"""Resolves the settings of each task: what it leaves out is the run's. Imports no torch by itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol, TypeVar

from preceptor.settings import Section
from preceptor.settings_errors import explain
from pydantic import ValidationError

from preceptor_client.train.data.config import DataConfig
from preceptor_client.train.environment.config import EnvironmentConfig
from preceptor_client.train.evaluation.config import EvaluationConfig
from preceptor_client.train.objective.config import CreditConfig, ObjectiveConfig
from preceptor_client.train.parts import PartConfig, options_key
from preceptor_client.train.rollout.config import RolloutConfig
from preceptor_client.train.rollout.rewards import RewardConfig
from preceptor_client.train.tasks.config import SectionChanges, TaskConfig
from preceptor_client.train.tasks.task import Task
from preceptor_client.train.teacher.config import TeacherConfig
from preceptor_client.train.teacher.scorer import GRPC

SectionT = TypeVar("SectionT", bound=Section)
ONLY_TEACHER = "teacher"
"""The name of a teacher that stands in [teacher] alone and has no other."""
_OF_THE_RUN = {"rollout": ("prompts_per_step",), "evaluation": ("every_steps",)}


class TaskSettings(Protocol):
    """The part of a run's settings that tasks are made of."""

    @property
    def teacher(self) -> TeacherConfig: ...
    @property
    def teachers(self) -> Mapping[str, SectionChanges]: ...
    @property
    def tasks(self) -> Mapping[str, TaskConfig]: ...
    @property
    def data(self) -> DataConfig: ...
    @property
    def environment(self) -> EnvironmentConfig | None: ...
    @property
    def rollout(self) -> RolloutConfig: ...
    @property
    def rewards(self) -> Sequence[RewardConfig]: ...
    @property
    def objective(self) -> ObjectiveConfig: ...
    @property
    def weights(self) -> PartConfig | None: ...
    @property
    def credit(self) -> CreditConfig | None: ...
    @property
    def evaluation(self) -> EvaluationConfig: ...


def resolved_teachers(settings: TaskSettings) -> dict[str, TeacherConfig]:
    """Every teacher by its name in the settings. Raises ValueError, which names the key."""
    if not settings.teachers:
        return {settings.teacher.name or ONLY_TEACHER: _with_address(settings.teacher, key="teacher")}
    return {
        name: _with_address(overlaid(settings.teacher, changes, key=f"teachers.{name}"), key=f"teachers.{name}")
        for name, changes in settings.teachers.items()
    }


def resolved_tasks(settings: TaskSettings, *, seed: int) -> tuple[Task, ...]:
    """Every task of a run, one at least. Raises ValueError, which names the key."""
    teachers = resolved_teachers(settings)
    if not settings.tasks:
        return (_checked(_task("", TaskConfig(), settings=settings, teachers=teachers, seed=seed)),)
    return tuple(
        _checked(_task(name, task, settings=settings, teachers=teachers, seed=seed))
        for name, task in settings.tasks.items()
    )


def overlaid(section: SectionT, changes: Mapping[str, object], *, key: str) -> SectionT:
    """The section with these settings changed. A part of another kind has other options: those of the section's own
    are not taken over. Raises ValueError, which names the setting below `key`."""
    if not changes:
        return section
    kept = section.model_dump(exclude_unset=True)
    for name, value in changes.items():
        if value != getattr(section, name, value):
            kept.pop(options_key(name), None)
    return _validated(type(section), {**kept, **changes}, key=key)


def _task(
    name: str, task: TaskConfig, *, settings: TaskSettings, teachers: Mapping[str, TeacherConfig], seed: int
) -> Task:
    for section, fields in _OF_THE_RUN.items():
        if own := [field for field in fields if field in getattr(task, section)]:
            raise ValueError(f"tasks.{name}.{section}.{own[0]}: is the run's alone: set {section}.{own[0]}")
    key = f"tasks.{name}" if name else ""
    shares = _shares(name, task, teachers=teachers)
    credit, weights, environment = settings.credit, settings.weights, settings.environment
    return Task(
        name=name,
        weight=task.weight,
        data=overlaid(settings.data, task.data, key=f"{key}.data"),
        environment=_part(environment, task.environment, of=EnvironmentConfig, key=f"{key}.environment"),
        rollout=overlaid(settings.rollout, task.rollout, key=f"{key}.rollout"),
        rewards=tuple(settings.rewards if task.rewards is None else task.rewards),
        teachers={one: overlaid(teachers[one], task.teacher, key=f"{key}.teacher") for one in shares},
        teacher_shares=shares,
        has_named_teachers=bool(settings.teachers),
        combine=task.combine,
        teacher_weights=task.teacher_weights,
        objective=overlaid(settings.objective, task.objective, key=f"{key}.objective"),
        weights=_part(weights, task.weights, of=PartConfig, key=f"{key}.weights"),
        credit=_part(credit, task.credit, of=CreditConfig, key=f"{key}.credit"),
        evaluation=overlaid(settings.evaluation, task.evaluation, key=f"{key}.evaluation"),
        seed=seed,
    )


def _part(section: SectionT | None, changes: Mapping[str, object], *, of: type[SectionT], key: str) -> SectionT | None:
    if section is None:
        return _validated(of, changes, key=key) if changes else None
    return overlaid(section, changes, key=key)


def _validated(section_type: type[SectionT], values: Mapping[str, object], *, key: str) -> SectionT:
    try:
        return section_type.model_validate(values)
    except ValidationError as error:
        raise ValueError("; ".join(f"{key}.{line}" for line in explain(error, section_type))) from error


def _shares(name: str, task: TaskConfig, *, teachers: Mapping[str, TeacherConfig]) -> dict[str, float]:
    key = f"tasks.{name}.teachers"
    given = task.teachers if isinstance(task.teachers, dict) else dict.fromkeys(task.teachers, 1.0)
    if not given:
        if len(teachers) > 1:
            what = f"{key} is not set" if name else "several [teachers.NAME] and no [tasks.NAME] that says which to ask"
            raise ValueError(f"{what}: name one of {', '.join(teachers)}, or several")
        given = dict.fromkeys(teachers, 1.0)
    if unknown := [one for one in given if one not in teachers]:
        raise ValueError(f"{key}: there is no [teachers.{unknown[0]}]; there are: {', '.join(teachers)}")
    if any(share <= 0 for share in given.values()):
        raise ValueError(f"{key}: a weight must be above 0")
    if task.teacher_weights and len(given) == 1:
        raise ValueError(f"tasks.{name}.teacher_weights: there is one teacher: leave it out")
    total = sum(given.values())
    return {one: share / total for one, share in given.items()}


def _with_address(teacher: TeacherConfig, *, key: str) -> TeacherConfig:
    if not teacher.address and teacher.kind == GRPC:
        raise ValueError(f"{key}.address: is not set: give host:port of the teacher's server")
    return teacher


def _checked(task: Task) -> Task:
    """What concerns several of its sections."""
    if not task.data.train and not (task.environment and task.environment.num_examples):
        hint = ", or environment.num_examples" if task.environment else ""
        raise ValueError(f"{task.key('data.train')}: is not set: name a JSONL file or a dataset{hint}")
    asked = [name for name in ("every_steps", "teacher_prompts", "loss") if getattr(task.evaluation, name)]
    has_heldout = task.data.heldout is not None or (task.environment and task.environment.num_heldout)
    if asked and not has_heldout and not task.name:  # of several tasks, some may have nothing to be measured on
        raise ValueError(
            f"evaluation.{asked[0]} is set, and there is nothing to measure on: set data.heldout, or remove it"
        )
    if task.rollout.responses_per_prompt > task.rollout.batch_size:
        raise ValueError(
            f"{task.key('rollout')}.responses_per_prompt={task.rollout.responses_per_prompt} is above "
            f"rollout.batch_size={task.rollout.batch_size}: raise one or lower the other, since a prompt's responses "
            "are one batch"
        )
    temperatures = {teacher.temperature for teacher in task.teachers.values()}
    if len(temperatures) > 1:
        raise ValueError(
            f"{task.key('teachers')}: their temperatures differ ({', '.join(map(str, sorted(temperatures)))}), and one "
            "loss has one: set the same"
        )
    return task
