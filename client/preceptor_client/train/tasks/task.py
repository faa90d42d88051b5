"""One task, resolved: every setting that its parts need, whoever gave it. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from preceptor_client.train.data.config import DataConfig
from preceptor_client.train.environment.config import EnvironmentConfig
from preceptor_client.train.evaluation.config import EvaluationConfig
from preceptor_client.train.objective.config import CreditConfig, ObjectiveConfig
from preceptor_client.train.parts import PartConfig
from preceptor_client.train.rollout.config import RolloutConfig
from preceptor_client.train.rollout.rewards import RewardConfig
from preceptor_client.train.tasks.config import Combine
from preceptor_client.train.teacher.config import TeacherConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """What a run practises: prompts or an environment, teachers, objective, limits."""

    name: str = ""
    """Of [tasks.NAME]; empty where the run has one task and no name for it."""
    weight: float = 1.0
    data: DataConfig
    environment: EnvironmentConfig | None = None
    rollout: RolloutConfig
    rewards: tuple[RewardConfig, ...] = ()
    teachers: Mapping[str, TeacherConfig]
    """By their names in the settings, in the order that the task names them; at least one."""
    teacher_shares: Mapping[str, float]
    """How much each teacher weighs; they add up to 1."""
    has_named_teachers: bool = False
    """Whether the run has [teachers.NAME]."""
    combine: Combine = "mixture"
    teacher_weights: PartConfig | None = None
    objective: ObjectiveConfig
    weights: PartConfig | None = None
    credit: CreditConfig | None = None
    evaluation: EvaluationConfig
    seed: int
    """Of the run."""

    @property
    def teacher(self) -> TeacherConfig:
        """The first, whose top_k and temperature are those of the task."""
        return next(iter(self.teachers.values()))

    @property
    def temperature(self) -> float:
        """Of the loss."""
        return self.teacher.temperature

    @property
    def num_student_tokens(self) -> int:
        """How many of its own likeliest tokens the student names at each position, for the teachers to score."""
        return self.teacher.top_k if self.objective.needs_student_tokens else 0

    def source(self, which: str) -> str:
        """The name of one of its data sources, "train" or "heldout", among those of all tasks."""
        return f"{self.name}/{which}" if self.name else which

    def teacher_key(self, name: str, setting: str) -> str:
        """What a person would set of a teacher: "teacher.kind", or "teachers.law.kind" of one with a name."""
        return f"teachers.{name}.{setting}" if self.has_named_teachers else f"teacher.{setting}"

    def key(self, setting: str) -> str:
        """What a person would set: "rollout.top_p", or "tasks.math.rollout.top_p" of a named task."""
        return f"tasks.{self.name}.{setting}" if self.name else setting
