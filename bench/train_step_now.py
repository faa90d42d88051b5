"""What bench.train_step_worker measures of this tree."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from preceptor_client.train.data.examples import Example
from preceptor_client.train.learner.config import OptimizerConfig
from preceptor_client.train.learner.learner import Learner, TaskLoss
from preceptor_client.train.learner.loss import Loss
from preceptor_client.train.objective.config import ObjectiveConfig
from preceptor_client.train.objective.context import StepContext
from preceptor_client.train.objective.reduction import Reduction
from preceptor_client.train.objective.shaping import Shaping
from preceptor_client.train.rollout.episode import Episode, single_turn
from preceptor_client.train.student.config import StudentConfig
from preceptor_client.train.student.student import Student, load_student
from preceptor_client.train.student.view import StudentView
from preceptor_client.train.teacher.scored import ScoredEpisode

from bench.train_step_case import (
    LEARNING_RATE,
    MICRO_BATCH_SIZE,
    SavedRollout,
    floats,
    read_step,
    scores_of,
    student_place,
)


def student_config() -> StudentConfig:
    """The demo's student: SmolLM2-135M, fp32."""
    folder, gguf_file = student_place()
    return StudentConfig(model=folder, gguf_file=gguf_file, device="cpu")


def learner_of(student: Student) -> tuple[Learner, TaskLoss]:
    """The demo's learner and its only task."""

    def context(step: int) -> StepContext:
        return StepContext(step=step, num_steps=1, tokenizer=student.tokenizer, end_token_ids=student.end_token_ids)

    loss = Loss(student, config=ObjectiveConfig(), temperature=1.0)
    task = TaskLoss(loss=loss, shaping=Shaping(reduction=Reduction()))
    optimizer = OptimizerConfig(learning_rate=LEARNING_RATE, micro_batch_size=MICRO_BATCH_SIZE)
    return Learner(student, config=optimizer, tasks={"": task}, context=context), task


def scored_episodes(path: Path) -> list[ScoredEpisode]:
    """The saved step as the trainer's own types."""
    return [
        ScoredEpisode(episode=_episode(one, slot), scores=scores_of(one)) for slot, one in enumerate(read_step(path))
    ]


def accumulating(path: Path) -> tuple[torch.nn.Module, torch.optim.Optimizer, Callable[[], float]]:
    """The student's model, the optimizer, and what adds gradients up and returns the loss."""
    student = load_student(student_config())
    learner, task = learner_of(student)
    at = StepContext(step=1, num_steps=1, tokenizer=student.tokenizer, end_token_ids=student.end_token_ids)
    shaped = {"": task.shaping.shape(scored_episodes(path), at)}
    return student.model, learner.optimizer, lambda: learner.accumulate_gradients(shaped).loss


def _episode(one: SavedRollout, slot: int) -> Episode:
    return single_turn(
        example=Example(index=slot, prompt=""),
        slot=slot,
        prompt_ids=tuple(one["prompt_ids"]),
        response_ids=tuple(one["response_ids"]),
        finish_reason="stop" if one["finish_reason"] == "stop" else "length",
        student=StudentView(logprobs_T=floats(one["student_logprobs"]), entropies_T=floats(one["student_entropies"])),
    )
