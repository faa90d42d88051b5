"""`preceptor eval @ run.toml`: measures a student on the held-out examples of a run's settings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from preceptor.settings import InvalidSettingsError, load_settings
from rich.console import Console
from rich.table import Table
from rich.text import Text

from preceptor_client.train.run.config import EvalConfig
from preceptor_client.train.student.config import StudentConfig

if TYPE_CHECKING:
    from preceptor_client.train.data.bad_examples import BadExamples
    from preceptor_client.train.data.examples import Example
    from preceptor_client.train.student.student import Student
    from preceptor_client.train.tasks.task import Task


def run(arguments: list[str]) -> int:
    """Exit status 0 however many answers are right."""
    config = load_settings(EvalConfig, arguments, program="preceptor eval")
    tasks = [task for task in config.all_tasks() if task.data.heldout is not None]
    if not tasks:
        raise InvalidSettingsError("preceptor eval: data.heldout is not set: name a file of examples with answers")
    # After the settings: a wrong one is reported without the seconds that these imports take.
    from transformers.utils import logging as transformers_logging

    from preceptor_client.train.data.bad_examples import BadExamples
    from preceptor_client.train.student.student import load_student
    from preceptor_client.train.tasks.task_examples import heldout_examples

    console = Console()
    transformers_logging.disable_progress_bar()
    bad = BadExamples(policy=config.data.on_bad_example, limit=config.data.max_bad_examples)
    examples = [heldout_examples(task, bad=bad) for task in tasks]
    model = _model_to_measure(config)
    field = "model" if config.model else "student.model" if model is config.student else "checkpoint"
    _line(console, f"model: {model.model}")
    student = load_student(model, field=field)
    for task, of_task in zip(tasks, examples, strict=True):
        _measure(student, task, examples=of_task, config=config, bad=bad, console=console)
    for warning in bad.warnings():  # of all tasks together
        _line(console, f"warning: {warning}")
    return 0


def _measure(
    student: Student,
    task: Task,
    *,
    examples: Sequence[Example],
    config: EvalConfig,
    bad: BadExamples,
    console: Console,
) -> None:
    """Prints one task's answers, and how many are right."""
    from preceptor_client.train.evaluation.evaluate import evaluate

    result = evaluate(
        student,
        examples,
        config=task.evaluation,
        prompts=config.prompts,
        on_bad=lambda error: bad.leave_out(error, of=task.source("heldout")),
    )
    if config.show:
        table = Table("prompt", "expected", "answer", "right")
        for answer in result.answers[: config.show]:
            mark = Text("yes", style="green") if answer.is_correct else Text("no", style="red")
            table.add_row(Text(answer.prompt), Text(answer.expected), Text(answer.answer), mark)
        console.print(table)
    of = f"{task.name}: " if task.name else ""
    _line(
        console,
        f"{of}{result.num_correct} of {len(result.answers)} right ({result.accuracy:.1%}), "
        f"{result.mean_answer_length:.1f} tokens on average, with the {config.prompts}'s prompts",
    )


def _line(console: Console, text: str) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def _model_to_measure(config: EvalConfig) -> StudentConfig:
    """The given model, or the run's newest checkpoint, or what the run starts from; the line printed says which."""
    from preceptor_client.train.learner.checkpoint_folders import latest_checkpoint

    newest = latest_checkpoint(config.run.directory)
    name = config.model or (str(newest) if newest else None)
    if name is None or name == config.student.model:
        return config.student
    return config.student.model_copy(update={"model": name, "gguf_file": None})
