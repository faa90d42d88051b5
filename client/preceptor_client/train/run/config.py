"""Every setting of a training run: types, bounds, and the checks across fields. Imports no torch."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal, Self

from preceptor.settings import Section
from pydantic import Field, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from preceptor_client.train.data.config import DataConfig
from preceptor_client.train.environment.config import EnvironmentConfig
from preceptor_client.train.evaluation.config import EvaluationConfig
from preceptor_client.train.learner.config import OptimizerConfig
from preceptor_client.train.objective.config import CreditConfig, ObjectiveConfig
from preceptor_client.train.parts import PartConfig
from preceptor_client.train.rollout.config import RolloutConfig
from preceptor_client.train.rollout.rewards import RewardConfig
from preceptor_client.train.student.config import StudentConfig
from preceptor_client.train.tasks.config import SectionChanges, TaskConfig
from preceptor_client.train.tasks.mixing import TaskOrder
from preceptor_client.train.tasks.resolve import resolved_tasks, resolved_teachers
from preceptor_client.train.tasks.task import Task
from preceptor_client.train.teacher.config import TeacherConfig
from preceptor_client.train.teacher.scorer import GRPC


class RunSection(Section):
    """Where a run lives, how long it is, and when it is saved."""

    directory: Path
    """Folder for checkpoints, metrics, log and report."""
    num_steps: int = Field(ge=1)
    """Optimizer steps in all, those before a resume included."""
    seed: int = Field(0, ge=0)
    """Order of the examples and draws of the rollouts are functions of it."""
    sample_rollouts: int = Field(4, ge=0)
    """Rollouts of a step that are kept token by token for the report, at about eight steps of the run."""
    checkpoint_every_steps: int = Field(50, ge=1)
    """Steps between checkpoints; the last step is always saved."""
    keep_checkpoints: int = Field(1, ge=1)
    """Newest checkpoints to keep."""
    resume: bool = True
    """Continue the run that the directory holds; false refuses a directory that holds one."""
    task_order: TaskOrder = "mix"
    """With several tasks: every step has prompts of several (mix), or of one (alternate)."""
    max_non_finite_share: float = Field(0.1, ge=0, le=1)
    """Stop when a larger share of a step's positions came back from the teacher as NaN or infinity."""
    save_episodes: bool = False
    """Keep every episode in episodes.jsonl, which the rollout engine "jsonl" reads."""
    max_failed_share: float | None = Field(None, ge=0, le=1)
    """Stop when a larger share failed: of a step's episodes, through an environment, an engine or a reward (0.5 where
    this is not set); or of the last 200 groups that teachers were asked about, by a failure of the teacher's (0.05
    where this is not set, and not before 5 failed). 0 stops at the first."""

    @property
    def max_failed_episodes(self) -> float:
        """The share of a step's episodes that may fail."""
        return 0.5 if self.max_failed_share is None else self.max_failed_share

    @property
    def max_failed_groups(self) -> float:
        """The share of the last groups that teachers may fail on."""
        return 0.05 if self.max_failed_share is None else self.max_failed_share


class RunConfig(BaseSettings):
    """On-policy distillation of a student from a teacher server. Settings come from the command line, else from
    PRECEPTOR_... variables, else from TOML files that stand first: @ a.toml @ b.toml ... A setting that takes the name
    of a part also takes package.module:Name of a class of yours; docs/extend.md shows each of them."""

    model_config = SettingsConfigDict(
        env_prefix="PRECEPTOR_",
        env_nested_delimiter="__",
        cli_kebab_case=True,
        extra="forbid",
        frozen=True,
        use_attribute_docstrings=True,
    )

    student: StudentConfig
    """The model to train."""
    teacher: TeacherConfig
    """The server to ask, and what to ask it for; with [teachers.NAME], what those have in common."""
    teachers: dict[str, SectionChanges] = Field(default_factory=dict)
    """Several teachers by name: each table holds settings of [teacher] that are its own."""
    tasks: dict[str, TaskConfig] = Field(default_factory=dict)
    """Several tasks by name: each table holds its teachers, and what differs from the run's sections."""
    data: DataConfig
    """What the student practises on, and what it is measured on."""
    environment: EnvironmentConfig | None = None
    """What answers the student, turn by turn; without it each rollout is one response to a prompt."""
    rollout: RolloutConfig
    """How the student writes."""
    rewards: tuple[RewardConfig, ...] = ()
    """Parts that reward episodes; their rewards are added up."""
    objective: ObjectiveConfig = ObjectiveConfig()
    """The loss."""
    weights: PartConfig | None = None
    """A part that says how much each position counts in the loss."""
    credit: CreditConfig | None = None
    """A policy gradient beside the loss: a part that makes an advantage for each position."""
    optimizer: OptimizerConfig
    """AdamW, and how a step is cut into pieces that fit memory."""
    evaluation: EvaluationConfig = EvaluationConfig()
    """How held-out answers are written and judged."""
    hooks: tuple[PartConfig, ...] = ()
    """Parts that are called after each step."""
    run: RunSection
    """Where a run lives, how long it is, and when it is saved."""

    def all_teachers(self) -> dict[str, TeacherConfig]:
        """By name; one at least."""
        return resolved_teachers(self)

    def all_tasks(self) -> tuple[Task, ...]:
        """One at least, each with every setting that its parts need."""
        return resolved_tasks(self, seed=self.run.seed)

    @model_validator(mode="before")
    @classmethod
    def _tables_of_names_may_stand_alone(cls, values: object) -> object:
        """With them, with an environment and with a teacher of a kind of one's own, what [teacher] and [data] lack may
        be elsewhere, or not be needed: that is checked later."""
        if not isinstance(values, dict):
            return values
        teacher, tasks = values.get("teacher"), values.get("tasks")
        is_own = isinstance(teacher, dict) and teacher.get("kind", GRPC) != GRPC
        wheres = {
            "teacher": ("address", values.get("teachers") or tasks or is_own),
            "data": ("train", tasks or values.get("environment")),
        }
        for section, (name, stands_alone) in wheres.items():
            given = values.get(section, {})
            if stands_alone and isinstance(given, dict):
                values = {**values, section: {name: "", **given}}
        return values

    @field_validator("tasks", "teachers")
    @classmethod
    def _names_can_be_written_anywhere(cls, tables: dict[str, object]) -> dict[str, object]:
        for name in tables:
            if not re.fullmatch(r"[A-Za-z0-9_-]+", name):
                raise ValueError(f"{name!r} is no name: letters, digits, _ and - are")
        return tables

    @model_validator(mode="after")
    def _fields_fit_each_other(self) -> Self:
        self.all_tasks()
        if self.optimizer.warmup_steps > self.run.num_steps:
            raise ValueError(
                f"optimizer.warmup_steps={self.optimizer.warmup_steps} is above run.num_steps={self.run.num_steps}: "
                "lower the one or raise the other"
            )
        return self

    @model_validator(mode="after")
    def _weights_can_move(self) -> Self:
        if self.student.dtype == "bfloat16":
            raise ValueError(
                "student.dtype=bfloat16 would keep weights, gradients and optimizer in bfloat16, where steps as small "
                "as those of training round away: in 10 steps at a learning rate of 2e-6 about 1.5 % of the weights "
                "move at all, in float32 all of them: set student.dtype=float32"
            )
        return self


class EvalConfig(RunConfig):
    """Measure a student on the held-out examples of a run's settings."""

    model: str | None = None
    """Folder, or Hugging Face id, to measure; without it the run's newest checkpoint, or else student.model."""
    prompts: Literal["student", "teacher"] = "student"
    """Whose prompts to answer."""
    show: int = Field(10, ge=0)
    """Answers to print."""

    @model_validator(mode="after")
    def _weights_can_move(self) -> Self:
        """Nothing is trained: instead of the run's check."""
        return self
