"""What the instruments cost of a demo step: the time inside them, as a share of the step without waiting for a teacher.

The recorder runs while the student writes, the measure of mass and overlap within the update (its logits within the
forward), the table after it.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from preceptor_client.train.instruments.breakdown import breakdown_rows
from preceptor_client.train.instruments.measures import measure
from preceptor_client.train.instruments.table import position_table
from preceptor_client.train.learner import learner as learner_module
from preceptor_client.train.learner.columns import StudentColumns
from preceptor_client.train.learner.learner import Learner
from preceptor_client.train.learner.measure import StudentMeasure
from preceptor_client.train.rollout import policy as policy_module
from preceptor_client.train.student.head import Head
from preceptor_client.train.student.recorder import StudentRecorder
from preceptor_client.train.student.student import Student, load_student
from preceptor_client.train.student.view import StudentView
from preceptor_client.train.teacher.scored import ScoredEpisode

from bench.train_step_data import demo_examples, demo_rollouts
from bench.train_step_now import learner_of, scored_episodes, student_config


class Clock:
    """Adds up seconds by name."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def runs(self, name: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - started


def instrument_seconds(path: Path, *, rounds: int) -> dict[str, float]:
    """Medians: of each instrument, and of the `step` that holds them all. The teacher's answer comes from the file."""
    student = load_student(student_config())
    scored = scored_episodes(path)
    learner, _ = learner_of(student)
    _step(student, learner, scored, Clock())  # warms up, and moves the weights a little
    clocks = [Clock() for _ in range(rounds)]
    for clock in clocks:
        _step(student, learner, scored, clock)
    return {name: statistics.median(clock.seconds[name] for clock in clocks) for name in clocks[0].seconds}


def _step(student: Student, learner: Learner, scored: list[ScoredEpisode], clock: Clock) -> None:
    """Every round writes and learns from equally much: the responses of the file, whatever is written now."""
    recorder, student_measure, dense_logits = _timed(clock)
    with (
        patch.object(policy_module, "StudentRecorder", recorder),
        patch.object(learner_module, "StudentMeasure", student_measure),
        patch.object(Head, "logits", dense_logits),
        clock.runs("step"),
    ):
        for _ in demo_rollouts(student).generate(demo_examples(), step=1):
            pass
        result = learner.step(scored, step=1)
        assert result is not None
        with clock.runs("instruments"):
            table = position_table(scored, result.columns, end_token_ids=student.end_token_ids)
            measure(table)
            breakdown_rows(table, step=1)


def _timed(
    clock: Clock,
) -> tuple[type[StudentRecorder], type[StudentMeasure], Callable[[Head, torch.Tensor], torch.Tensor]]:
    """What runs inside others, with a clock around what it does; the last are the logits that the measure asks for."""
    untimed_logits = Head.logits

    def dense_logits(head: Head, hidden_ND: torch.Tensor) -> torch.Tensor:
        with clock.runs("mass and overlap"):
            return untimed_logits(head, hidden_ND)

    class TimedRecorder(StudentRecorder):
        def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
            with clock.runs("recorder"):
                return super().__call__(input_ids, scores)

        def finish(self, last_ids_B: torch.Tensor, *, lengths: list[int]) -> list[StudentView]:
            with clock.runs("recorder"):
                return super().finish(last_ids_B, lengths=lengths)

    class TimedMeasure(StudentMeasure):
        def add(self, *arguments: Any) -> None:  # Any: handed on
            with clock.runs("mass and overlap"):
                super().add(*arguments)

        def finish(self) -> list[StudentColumns]:
            with clock.runs("mass and overlap"):
                return super().finish()

    return TimedRecorder, TimedMeasure, dense_logits
