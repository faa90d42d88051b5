"""Lets a student answer one batch of prompts the way a run would, has it scored, and measures it. Moves no weights."""

from __future__ import annotations

from collections.abc import Sequence

from transformers.utils import logging as transformers_logging

from preceptor_client.commands.pretraining import Pretraining
from preceptor_client.train.data.bad_examples import BadExamples
from preceptor_client.train.data.examples import Example, PromptStream
from preceptor_client.train.data.loading import load_train_examples
from preceptor_client.train.instruments.breakdown import breakdown_rows
from preceptor_client.train.instruments.measures import measure
from preceptor_client.train.instruments.table import position_table
from preceptor_client.train.instruments.verdicts import verdicts
from preceptor_client.train.learner.measure import student_columns
from preceptor_client.train.run.build import Builder
from preceptor_client.train.run.config import RunConfig
from preceptor_client.train.run.task_parts import make_parts
from preceptor_client.train.run.task_run import Failures
from preceptor_client.train.start.handshake import check_teacher
from preceptor_client.train.start.objective_fit import can_name_tokens
from preceptor_client.train.stop import StopRequest
from preceptor_client.train.student.student import Student, load_student
from preceptor_client.train.teacher.agreement import Agreement
from preceptor_client.train.teacher.opening import opened_client
from preceptor_client.train.teacher.scored import ScoredEpisode
from preceptor_client.train.teacher.scorer import Scorer
from preceptor_client.train.teacher.views import view_teacher

MAX_MEASURED_POSITIONS = 128
"""Positions at which the student's whole distribution is computed, for its mass and the overlap."""
_BEFORE_TRAINING = 0
"""Steps count from 1."""


def measure_batch(config: RunConfig, *, num_prompts: int) -> Pretraining:
    """Loads the student and asks the server. Raises PreceptorError, whose message names what to change."""
    transformers_logging.disable_progress_bar()
    examples = load_train_examples(config.data)
    stream = PromptStream(examples, prompts_per_step=min(num_prompts, len(examples)), seed=config.run.seed)
    student = load_student(config.student)
    with opened_client(config.teacher) as client:
        scored, agreement = roll_out(student, client, config=config, examples=stream.step(1), checked=examples)
    return judge(student, scored, config=config, agreement=agreement)


def roll_out(
    student: Student,
    scorer: Scorer,
    *,
    config: RunConfig,
    examples: Sequence[Example],
    checked: Sequence[Example] = (),
) -> tuple[list[ScoredEpisode], Agreement]:
    """What the student writes and what the teacher thinks of it, asked for as a run would; and on what terms. `checked`
    are all that a run would check before its first step; empty = the same."""
    (task,) = config.all_tasks()
    parts = make_parts(task)
    agreement = check_teacher(scorer, task=task, student=student, examples=checked or examples)
    (name,) = task.teachers
    builder = Builder(config=config, student=student, scorers={name: scorer}, bad=BadExamples(), stop=StopRequest())
    scoring = builder.scoring(task, parts, agreements={name: agreement})
    failures = Failures(builder.bad.at_step(_BEFORE_TRAINING, of="train"))
    try:
        for batch in builder.roller(task, parts).roll_out(examples, step=_BEFORE_TRAINING, on_bad=failures):
            scoring.submit(batch, name="doctor")
        return scoring.gather(), agreement
    finally:
        scoring.cancel()


def judge(student: Student, scored: Sequence[ScoredEpisode], *, config: RunConfig, agreement: Agreement) -> Pretraining:
    """Measures what was scored, and says what it means."""
    columns = student_columns(
        student, scored, temperature=config.teacher.temperature, max_positions=MAX_MEASURED_POSITIONS
    )
    table = position_table(scored, columns, end_token_ids=student.end_token_ids)
    measures, rows, view = measure(table), breakdown_rows(table, step=_BEFORE_TRAINING), view_teacher(scored)
    by_position = tuple(row for row in rows if row["by"] == "position")
    return Pretraining(
        num_responses=len(scored),
        scored_share=view.scored_share,
        num_by_status=view.num_by_status,
        measures=measures,
        by_position=by_position,
        by_task=tuple(row for row in rows if row["by"] == "task"),
        verdicts=tuple(
            verdicts(
                measures,
                num_by_status=view.num_by_status,
                by_position=by_position,
                can_name_tokens=can_name_tokens(agreement),
            )
        ),
    )
