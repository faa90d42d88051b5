"""Trainers for tests, made the way a run makes them; a run directory is as good as its checkpoints."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from preceptor_client.train.data.bad_examples import BadExamples
from preceptor_client.train.data.examples import Example
from preceptor_client.train.data.loading import load_train_examples
from preceptor_client.train.learner.checkpoint_folders import checkpoint_step, latest_checkpoint
from preceptor_client.train.record.metrics import Metrics
from preceptor_client.train.record.rollout_log import RolloutLog
from preceptor_client.train.run.build import Builder
from preceptor_client.train.run.config import RunConfig
from preceptor_client.train.run.display import Display, SilentDisplay
from preceptor_client.train.run.hooks import Hooks
from preceptor_client.train.run.step_log import StepLog
from preceptor_client.train.run.trainer import Trainer
from preceptor_client.train.stop import StopRequest
from preceptor_client.train.student.student import load_student
from preceptor_client.train.tasks.mixing import TaskMix
from preceptor_client.train.tasks.task import Task
from preceptor_client.train.teacher.revisions import Revisions

from tests.unit.client.train.fake_scorer import FakeScorer, agreement_with

Settings = dict[str, dict[str, Any]]  # Any: the leaves are whatever TOML holds


def task_of(settings: Settings) -> Task:
    """The one task of a run with these settings."""
    (task,) = RunConfig.model_validate(settings).all_tasks()
    return task


class Warnings(SilentDisplay):
    """Keeps what a person would have been warned of."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def warning(self, text: str) -> None:
        self.texts.append(text)


class Runs:
    """Makes trainers the way a run does: from the newest checkpoint of the directory where there is one."""

    def __init__(self, settings: Settings, scorer: FakeScorer) -> None:
        self._settings = settings
        self._scorer = scorer
        self._open: list[Metrics | RolloutLog] = []

    def trainer(
        self,
        *,
        name: str = "run",
        heldout: Sequence[Example] = (),
        display: Display | None = None,
        stop: StopRequest | None = None,
        scorer: FakeScorer | None = None,
        **changes: object,
    ) -> Trainer:
        self.close()
        base = Path(self._settings["run"]["directory"]).parent
        self._settings["run"] |= {"directory": str(base / name), **changes}
        config = RunConfig.model_validate(self._settings)
        config.run.directory.mkdir(exist_ok=True)
        checkpoint = latest_checkpoint(config.run.directory)
        metrics = Metrics(config.run.directory, step=checkpoint_step(checkpoint) if checkpoint else 0)
        rollout_log = RolloutLog(config.run.directory, step=checkpoint_step(checkpoint) if checkpoint else 0)
        self._open += [metrics, rollout_log]
        (task,) = config.all_tasks()
        (name,) = task.teachers
        student = load_student(config.student, folder=checkpoint)
        shown = display or SilentDisplay()
        agreement = agreement_with(self._scorer.teacher)
        builder = Builder(
            config=config,
            student=student,
            scorers={name: scorer or self._scorer},
            bad=BadExamples(),
            stop=stop or StopRequest(),
        )
        loss = builder.task_loss(task)
        task_run = builder.task_run(
            task,
            examples=load_train_examples(config.data),
            heldout=heldout,
            agreements={name: agreement},
            loss=loss,
        )
        return Trainer(
            student,
            config=config.run,
            tasks=[task_run],
            mix=TaskMix([1.0], prompts_per_step=config.rollout.prompts_per_step),
            learner=builder.learner({task.name: loss}),
            scorers=builder.scorers,
            hooks=Hooks.of(config.hooks),
            bad=builder.bad,
            revisions=Revisions({name: agreement.revision}),
            metrics=metrics,
            log=StepLog(student, config=config.run, metrics=metrics, rollouts=rollout_log),
            display=shown,
            stop=builder.stop,
            checkpoint=checkpoint,
        )

    def close(self) -> None:
        for metrics in self._open:
            metrics.close()
        self._open.clear()
