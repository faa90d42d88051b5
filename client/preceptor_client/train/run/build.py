"""Puts a run together from its settings: directory, data, student, teacher, loop, report. The only place that does."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from preceptor_client.teacher import BlockingTeacherClient, RetryEvent
from preceptor_client.train.data.bad_examples import BadExamples
from preceptor_client.train.data.examples import Example
from preceptor_client.train.data.loading import load_heldout_examples, load_train_examples
from preceptor_client.train.learner.checkpoint_folders import checkpoint_step, latest_checkpoint
from preceptor_client.train.objective.weights import PositionWeights
from preceptor_client.train.record.metrics import Metrics
from preceptor_client.train.record.rollout_log import RolloutLog
from preceptor_client.train.record.summary import RunSummary, summarise
from preceptor_client.train.report import REPORT_FILE, write_report
from preceptor_client.train.run.config import RunConfig
from preceptor_client.train.run.directory import claimed_directory
from preceptor_client.train.run.display import Display, SilentDisplay
from preceptor_client.train.run.trainer import Trainer
from preceptor_client.train.start.handshake import check_teacher
from preceptor_client.train.stop import StopRequest
from preceptor_client.train.student.student import Student, load_student
from preceptor_client.train.teacher.agreement import Agreement, save_agreement
from preceptor_client.train.teacher.scoring import Scorer

_log = logging.getLogger(__name__)


def train(
    config: RunConfig,
    *,
    scorer: Scorer | None = None,
    display: Display | None = None,
    weigh: PositionWeights | None = None,
    stop: StopRequest | None = None,
) -> RunSummary:
    """Runs, or continues, the training that the settings describe, and writes its report.

    `scorer` replaces the teacher server at `teacher.address`, for tests and for teachers in the same process. `weigh`
    says how much each scored position of a step counts, on top of `objective.reduction`; examples/ holds one. `stop`
    may be asked, from another thread, to end the run early: StopRequestedError then says what is saved.
    """
    shown = display or SilentDisplay()
    with claimed_directory(config) as directory, shown:
        checkpoint = latest_checkpoint(directory)
        bad = _bad_examples(config, is_resumed=checkpoint is not None, display=shown)
        examples = bad.left(load_train_examples(config.data, bad=bad), of="train")
        heldout = bad.left(load_heldout_examples(config.data, bad=bad), of="heldout")
        step = checkpoint_step(checkpoint) if checkpoint else 0
        shown.notice("loading the student")
        student = load_student(config.student, folder=checkpoint)
        with (
            _scorer(config, given=scorer, display=shown) as teacher,
            Metrics(directory, step=step) as metrics,
            RolloutLog(directory, step=step) as rollout_log,
        ):
            agreement = _agree(
                teacher, config=config, student=student, examples=examples, heldout=heldout, bad=bad, display=shown
            )
            save_agreement(directory, agreement)
            trainer = Trainer(
                student,
                scorer=teacher,
                agreement=agreement,
                config=config,
                examples=bad.left(examples, of="train"),
                heldout=bad.left(heldout, of="heldout"),
                metrics=metrics,
                rollout_log=rollout_log,
                display=shown,
                checkpoint=checkpoint,
                start=_load_start(config),
                bad=bad,
                weigh=weigh,
                stop=stop,
            )
            _log.info("run starts: directory=%s step=%d num_steps=%d", directory, step, config.run.num_steps)
            model_folder = trainer.run()
        summary = summarise(directory, model_folder=model_folder)
        write_report(directory / REPORT_FILE, run=summary)
        _log.info("run done: directory=%s loss=%s seconds=%.1f", directory, summary.loss_last, summary.seconds)
    return summary


def _agree(
    teacher: Scorer,
    *,
    config: RunConfig,
    student: Student,
    examples: Sequence[Example],
    heldout: Sequence[Example],
    bad: BadExamples,
    display: Display,
) -> Agreement:
    """What the teacher and this run agree about, whose warnings are shown."""
    display.notice(f"asking the teacher at {config.teacher.address}")
    agreement = check_teacher(
        teacher,
        config=config,
        student=student,
        examples=examples,
        heldout=heldout,
        bad=bad,
        notice=display.notice,
    )
    display.notice("")
    for warning in agreement.warnings:
        display.warning(warning)
    return agreement


def _load_start(config: RunConfig) -> Student | None:
    """The untrained student, where the objective needs it: also when the run goes on from a checkpoint."""
    if not config.objective.needs_reference:
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


@contextmanager
def _scorer(config: RunConfig, *, given: Scorer | None, display: Display) -> Iterator[Scorer]:
    if given is not None:
        yield given
        return
    address, patience = config.teacher.address, config.teacher.patience_seconds

    def show_retry(event: RetryEvent) -> None:
        state = "unreachable" if event.code == "UNAVAILABLE" else f"not answering ({event.code})"
        doing = "waiting" if event.next_delay_seconds else "going on"
        display.notice(
            f"teacher {state} at {event.address}, {doing} ({event.elapsed_seconds:.0f} s of {patience:.0f} s)"
        )
        _log.warning(
            "teacher does not answer: address=%s code=%s attempt=%d elapsed=%.1fs next=%.1fs message=%r",
            *(event.address, event.code, event.attempt, event.elapsed_seconds, event.next_delay_seconds, event.message),
        )

    with BlockingTeacherClient(address, timeout_seconds=patience, on_retry=show_retry) as client:
        yield client
