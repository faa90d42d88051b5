"""The parts that the settings of a task name, made before anything is loaded: so that a wrong one is told at once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from preceptor_client.train.environment.environment import MakeEnvironment, environment_maker
from preceptor_client.train.evaluation.metric import HeldoutMetrics
from preceptor_client.train.rollout.engine import ENGINES, RolloutEngine
from preceptor_client.train.rollout.rewards import WeightedReward, rewards_of
from preceptor_client.train.start.objective_fit import check_parts
from preceptor_client.train.tasks.task import Task
from preceptor_client.train.teacher.ensemble import SHARES, ShareRule
from preceptor_client.train.teacher.prompt_source import PROMPTS, PromptMaker
from preceptor_client.train.teacher.scorer import GRPC, SCORERS


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskParts:
    """Those that are used as they are; objective, weights and credit are made where they are bound to a student."""

    engine: RolloutEngine
    make_environment: MakeEnvironment | None
    rewards: tuple[WeightedReward, ...]
    prompt_makers: Mapping[str, PromptMaker]
    """By teacher, of those that have one."""
    share_rule: ShareRule | None


def make_parts(task: Task) -> TaskParts:
    """Raises InvalidPartError or ValueError, which names the key."""
    check_parts(objective=task.objective, weights=task.weights, credit=task.credit)
    HeldoutMetrics.of(task.evaluation.metrics, key=task.key("evaluation.metrics"))
    for name, teacher in task.teachers.items():
        if teacher.kind != GRPC:
            SCORERS.find(teacher.kind, key=task.teacher_key(name, "kind"))
    environment, rule = task.environment, task.teacher_weights
    return TaskParts(
        engine=ENGINES.make(task.rollout.engine, task.rollout.engine_options, key=task.key("rollout.engine")),
        make_environment=environment_maker(environment.kind, environment.options, key=task.key("environment.kind"))
        if environment
        else None,
        rewards=rewards_of(task.rewards, key=task.key("rewards")),
        prompt_makers={
            name: PROMPTS.make(teacher.prompt.kind, teacher.prompt.options, key=task.teacher_key(name, "prompt.kind"))
            for name, teacher in task.teachers.items()
            if teacher.prompt
        },
        share_rule=SHARES.make(rule.kind, rule.options, key=task.key("teacher_weights.kind")) if rule else None,
    )
