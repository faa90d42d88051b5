"""Runs a training from its settings: opens what it needs, checks it, trains, and writes the report."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from preceptor_client.train.data.bad_examples import BadExamples
from preceptor_client.train.data.examples import Example
from preceptor_client.train.errors import UnsuitableTeacherError
from preceptor_client.train.learner.checkpoint_folders import checkpoint_step, latest_checkpoint
from preceptor_client.train.objective.weights import PositionWeights
from preceptor_client.train.record.episode_log import EpisodeLog
from preceptor_client.train.record.metrics import Metrics
from preceptor_client.train.record.rollout_log import RolloutLog
from preceptor_client.train.record.summary import RunSummary, summarise
from preceptor_client.train.report import REPORT_FILE, write_report
from preceptor_client.train.run.build import Builder
from preceptor_client.train.run.config import RunConfig
from preceptor_client.train.run.connections import open_teachers
from preceptor_client.train.run.directory import claimed_directory
from preceptor_client.train.run.display import Display, SilentDisplay
from preceptor_client.train.run.hooks import Hooks
from preceptor_client.train.run.step_log import StepLog
from preceptor_client.train.run.task_parts import TaskParts, make_parts
from preceptor_client.train.run.trainer import Trainer
from preceptor_client.train.start.ensemble_fit import check_ensemble
from preceptor_client.train.start.handshake import check_teacher
from preceptor_client.train.stop import StopRequest
from preceptor_client.train.student.student import Student, load_student
from preceptor_client.train.tasks.mixing import TaskMix
from preceptor_client.train.tasks.task import Task
from preceptor_client.train.tasks.task_examples import heldout_examples, train_examples
from preceptor_client.train.teacher.agreement import Agreement, save_agreements
from preceptor_client.train.teacher.revisions import Revisions
from preceptor_client.train.teacher.scorer import Scorer

_log = logging.getLogger(__name__)


def train(
    config: RunConfig,
    *,
    scorer: Scorer | Mapping[str, Scorer] | None = None,
    display: Display | None = None,
    weigh: PositionWeights | None = None,
    stop: StopRequest | None = None,
) -> RunSummary:
    """Runs, or continues, the training that the settings describe, and writes its report.

    `scorer` replaces the teacher server at `teacher.address`, or several by their names, for tests and for teachers in
    the same process. `weigh` says how much each scored position of a step counts, in place of [weights]. `stop` may be
    asked, from another thread, to end the run early: StopRequestedError then says what is saved.
    """
    shown, stop = display or SilentDisplay(), stop or StopRequest()
    with claimed_directory(config) as directory, shown, ExitStack() as stack:
        tasks, hooks = _Tasks(config), Hooks.of(config.hooks)
        checkpoint = latest_checkpoint(directory)
        bad = _bad_examples(config, is_resumed=checkpoint is not None, display=shown)
        tasks.read(bad)
        step = checkpoint_step(checkpoint) if checkpoint else 0
        shown.notice("loading the student")
        student = load_student(config.student, folder=checkpoint)
        scorers = stack.enter_context(
            open_teachers(config.all_teachers(), given=scorer, display=shown, has_names=bool(config.teachers))
        )
        metrics = stack.enter_context(Metrics(directory, step=step))
        rollouts = stack.enter_context(RolloutLog(directory, step=step))
        episodes = stack.enter_context(EpisodeLog(directory, step=step)) if config.run.save_episodes else None
        tasks.agree(student, scorers=scorers, bad=bad, display=shown)
        save_agreements(directory, tasks.agreement_of_each_teacher())
        builder = Builder(
            config=config,
            student=student,
            scorers=scorers,
            bad=bad,
            stop=stop,
            start=_load_start(config, tasks=tasks.tasks),
            weigh=weigh,
        )
        trainer = tasks.trainer(
            builder,
            hooks=hooks,
            metrics=metrics,
            log=StepLog(student, config=config.run, metrics=metrics, rollouts=rollouts, episodes=episodes),
            display=shown,
            checkpoint=checkpoint,
        )
        _log.info("run starts: directory=%s step=%d num_steps=%d", directory, step, config.run.num_steps)
        model_folder = trainer.run()
        summary = summarise(directory, model_folder=model_folder)
        write_report(directory / REPORT_FILE, run=summary)
        _log.info("run done: directory=%s loss=%s seconds=%.1f", directory, summary.loss_last, summary.seconds)
    return summary


@dataclass(slots=True)
class _Prepared:
    """One task on its way to the loop."""

    task: Task
    parts: TaskParts
    examples: Sequence[Example] = ()
    heldout: Sequence[Example] = ()
    agreements: Mapping[str, Agreement] | None = None


class _Tasks:
    """The tasks of a run, from their settings to the loop."""

    def __init__(self, config: RunConfig) -> None:
        """Raises InvalidPartError or ValueError for a part that cannot be made."""
        self._config = config
        self._prepared = [_Prepared(task, make_parts(task)) for task in config.all_tasks()]

    @property
    def tasks(self) -> list[Task]:
        return [one.task for one in self._prepared]

    def read(self, bad: BadExamples) -> None:
        """Reads the examples."""
        for one in self._prepared:
            one.examples = train_examples(one.task, bad=bad)
            one.heldout = heldout_examples(one.task, bad=bad)

    def agree(self, student: Student, *, scorers: Mapping[str, Scorer], bad: BadExamples, display: Display) -> None:
        """Agrees with the teachers of each task, and shows what a person should know."""
        shown: set[str] = set()
        for one in self._prepared:
            agreements: dict[str, Agreement] = {}
            for name, teacher in one.task.teachers.items():
                display.notice(f"asking the teacher at {teacher.place}")
                is_prompted = one.task.environment is None
                with _named(name if one.task.has_named_teachers else ""):
                    agreements[name] = check_teacher(
                        scorers[name],
                        task=one.task,
                        name=name,
                        prompt_maker=one.parts.prompt_makers.get(name),
                        student=student,
                        examples=one.examples if is_prompted else [],
                        heldout=one.heldout if is_prompted else [],
                        bad=bad,
                        notice=display.notice,
                    )
                display.notice("")
            check_ensemble(one.task, agreements, scorers=scorers)
            one.agreements = agreements
            one.examples = bad.left(one.examples, of=one.task.source("train"))
            one.heldout = bad.left(one.heldout, of=one.task.source("heldout"))
            for agreement in agreements.values():
                for warning in agreement.warnings:
                    if warning not in shown:
                        display.warning(warning)
                    shown.add(warning)

    def agreement_of_each_teacher(self) -> dict[str, Agreement]:
        """What the first task that asks it agreed with it."""
        found: dict[str, Agreement] = {}
        for one in self._prepared:
            found = {**(one.agreements or {}), **found}
        return found

    def trainer(
        self,
        builder: Builder,
        *,
        hooks: Hooks,
        metrics: Metrics,
        log: StepLog,
        display: Display,
        checkpoint: Path | None,
    ) -> Trainer:
        """The loop over all tasks."""
        losses = {one.task.name: builder.task_loss(one.task) for one in self._prepared}
        return Trainer(
            builder.student,
            config=self._config.run,
            tasks=[
                builder.task_run(
                    one.task,
                    examples=one.examples,
                    heldout=one.heldout,
                    agreements=one.agreements or {},
                    loss=losses[one.task.name],
                    parts=one.parts,
                )
                for one in self._prepared
            ],
            mix=TaskMix(
                [task.weight for task in self.tasks],
                prompts_per_step=self._config.rollout.prompts_per_step,
                order=self._config.run.task_order,
            ),
            learner=builder.learner(losses),
            scorers=builder.scorers,
            hooks=hooks,
            bad=builder.bad,
            revisions=Revisions({name: one.revision for name, one in self.agreement_of_each_teacher().items()}),
            metrics=metrics,
            log=log,
            display=display,
            stop=builder.stop,
            checkpoint=checkpoint,
        )


@contextmanager
def _named(teacher: str) -> Iterator[None]:
    """Of several teachers, says which does not fit: each may have the same name on its server."""
    try:
        yield
    except UnsuitableTeacherError as error:
        raise UnsuitableTeacherError(f"teachers.{teacher}: {error}" if teacher else str(error)) from error


def _load_start(config: RunConfig, *, tasks: Sequence[Task]) -> Student | None:
    """The untrained student, where an objective needs it: also when the run goes on from a checkpoint."""
    if not any(task.objective.needs_reference for task in tasks):
        return None
    start = load_student(config.student)
    start.module.requires_grad_(False)
    return start


def _bad_examples(config: RunConfig, *, is_resumed: bool, display: Display) -> BadExamples:
    return BadExamples(
        policy=config.data.on_bad_example,
        limit=config.data.max_bad_examples,
        directory=config.run.directory,
        is_resumed=is_resumed,
        tell=display.warning,
    )
