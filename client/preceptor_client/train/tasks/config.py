"""Settings of one task, as a TOML file gives them: what differs from the run's. Imports no torch."""

from __future__ import annotations

from typing import Literal

from preceptor.settings import Section
from pydantic import Field, JsonValue

from preceptor_client.train.parts import PartConfig
from preceptor_client.train.rollout.rewards import RewardConfig

Combine = Literal["mixture", "divergences"]
SectionChanges = dict[str, JsonValue]
"""Settings of a section that differ from the run's."""


class TaskConfig(Section):
    """[tasks.NAME]: one of several tasks. Each section may hold any setting of the run's section of that name; what it
    leaves out is the run's."""

    weight: float = Field(1.0, gt=0)
    """Its share of the prompts, beside the other tasks' weights."""
    teachers: dict[str, float] | tuple[str, ...] = ()
    """Names of [teachers.NAME] that score it, or names with weights, such as {law = 0.7, code = 0.3}; empty takes the
    only one there is."""
    combine: Combine = "mixture"
    """With several teachers: the divergence to their mixture in probability, or the weighted sum of the divergences to
    each."""
    teacher_weights: PartConfig | None = None
    """With several teachers: a part that weighs them position by position, instead of fixed weights."""
    data: SectionChanges = Field(default_factory=dict)
    """Its examples, as in [data]."""
    environment: SectionChanges = Field(default_factory=dict)
    """As in [environment]."""
    rollout: SectionChanges = Field(default_factory=dict)
    """As in [rollout]; prompts_per_step is the run's alone."""
    rewards: tuple[RewardConfig, ...] | None = None
    """As [[rewards]]."""
    teacher: SectionChanges = Field(default_factory=dict)
    """As in [teacher], for all teachers of this task: top_k, temperature and such."""
    objective: SectionChanges = Field(default_factory=dict)
    """As in [objective]."""
    weights: SectionChanges = Field(default_factory=dict)
    """As in [weights]."""
    credit: SectionChanges = Field(default_factory=dict)
    """As in [credit]."""
    evaluation: SectionChanges = Field(default_factory=dict)
    """As in [evaluation]; every_steps is the run's alone."""
