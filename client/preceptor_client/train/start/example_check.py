"""Checks before the first step that student and teacher can read the prompts of all examples, or of a sample.

A bad one is left out, or stops the run, as `BadExamples` decides.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from preceptor_client.train.data.bad_examples import BadExamples, setting_of
from preceptor_client.train.data.examples import Example
from preceptor_client.train.start.prompts import check_prompts
from preceptor_client.train.start.teacher_prompts import TeacherPrompts
from preceptor_client.train.student.student import Student
from preceptor_client.train.tasks.task import Task
from preceptor_client.train.teacher.agreement import Agreement
from preceptor_client.train.teacher.config import TeacherConfig
from preceptor_client.train.teacher.prompt_source import PromptSource
from preceptor_client.train.teacher.scorer import Scorer
from preceptor_client.types import Limits

MAX_CHECKED_EXAMPLES = 4_000
"""Of each source. A tokenizer reads so many in seconds, and so does a teacher that has nothing to compute."""


def check_examples(
    scorer: Scorer,
    *,
    agreement: Agreement,
    limits: Limits,
    task: Task,
    teacher: TeacherConfig,
    prompts: PromptSource,
    student: Student,
    examples: Sequence[Example],
    heldout: Sequence[Example],
    bad: BadExamples,
    notice: Callable[[str], None],
) -> tuple[str, ...]:
    """Warnings. Raises InvalidDataError or UnsuitableTeacherError."""
    seed = task.seed
    train = checked_sample(examples, seed=seed)
    measured = checked_sample(heldout, seed=seed)
    scored = measured if task.evaluation.loss else []
    notice(f"checking {len(train) + len(measured)} examples")
    sampled = [
        f"{setting_of(task.source(name))}: {len(some)} of {len(all_of_them)} examples were checked, drawn at random: a "
        "bad one among the others shows at its step"
        for name, some, all_of_them in (("train", train, examples), ("heldout", measured, heldout))
        if len(some) < len(all_of_them)
    ]
    warnings = check_prompts(
        agreement,
        limits=limits,
        task=task,
        prompts=prompts,
        student=student,
        examples=train,
        heldout=scored,
        answered=measured,
        bad=bad,
    )
    asked = TeacherPrompts(scorer, agreement=agreement, config=teacher, prompts=prompts, student=student, bad=bad)
    questions = [(task.source("train"), one) for one in train] + [(task.source("heldout"), one) for one in scored]
    unread = asked.check(questions, notice=notice)
    return (*sampled, *warnings, *unread, *bad.warnings())


def checked_sample(examples: Sequence[Example], *, seed: int) -> Sequence[Example]:
    """All of them, or the same ones at every start of a run."""
    if len(examples) <= MAX_CHECKED_EXAMPLES:
        return examples
    chosen = random.Random(f"preceptor check {seed}").sample(range(len(examples)), MAX_CHECKED_EXAMPLES)
    return [examples[index] for index in sorted(chosen)]
