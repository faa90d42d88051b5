"""The loop: roll out, score, update; measure and save when due. Owns the order of things and none of their insides."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from pathlib import Path

from preceptor_client.errors import TeacherUnavailableError
from preceptor_client.train.data.bad_examples import BadExamples
from preceptor_client.train.data.examples import Example, PromptStream
from preceptor_client.train.errors import (
    InvalidDataError,
    RunDirectoryError,
    StopRequestedError,
    TrainingStoppedError,
)
from preceptor_client.train.evaluation.evaluate import PromptsOf
from preceptor_client.train.evaluation.heldout import Heldout
from preceptor_client.train.learner.checkpoint import load_optimizer, save_checkpoint
from preceptor_client.train.learner.checkpoint_folders import checkpoint_step
from preceptor_client.train.learner.learner import Update
from preceptor_client.train.learner.loss import Loss
from preceptor_client.train.objective.asking import scoring_for
from preceptor_client.train.objective.context import StepContext
from preceptor_client.train.objective.reference import Reference
from preceptor_client.train.objective.shaping import Shaping
from preceptor_client.train.objective.weights import PositionWeights
from preceptor_client.train.record.metrics import MetricRow, Metrics
from preceptor_client.train.record.rollout_log import RolloutLog
from preceptor_client.train.record.step_log import StepLog
from preceptor_client.train.record.views import TeacherView, advice, view_teacher
from preceptor_client.train.rollout.hf import HfRollouts
from preceptor_client.train.run.config import RunConfig
from preceptor_client.train.run.display import Display
from preceptor_client.train.stop import StopRequest
from preceptor_client.train.student.student import Student
from preceptor_client.train.teacher.agreement import Agreement
from preceptor_client.train.teacher.revisions import Revisions
from preceptor_client.train.teacher.scoring import Scorer, Scoring

_log = logging.getLogger(__name__)

LOW_SCORED_SHARE = 0.5
"""Below it a step learns from less than half of what the student wrote, and the user is told once."""


class Trainer:
    """One run, from the step that it is at to its last."""

    stream: PromptStream
    rollouts: HfRollouts
    scoring: Scoring
    update: Update

    def __init__(
        self,
        student: Student,
        *,
        scorer: Scorer,
        agreement: Agreement,
        config: RunConfig,
        examples: Sequence[Example],
        heldout: Sequence[Example],
        metrics: Metrics,
        rollout_log: RolloutLog,
        display: Display,
        checkpoint: Path | None = None,
        start: Student | None = None,
        bad: BadExamples | None = None,
        weigh: PositionWeights | None = None,
        stop: StopRequest | None = None,
    ) -> None:
        """`checkpoint` is the one that `student` was loaded from; `start` is the untrained student, frozen, where
        `objective.extrapolation` needs it; `bad` decides what a bad example does; `weigh` says how much each scored
        position of a step counts; `stop` may ask the run to end early."""
        self.student = student
        self.config = config
        self.shaping = Shaping.of_settings(
            objective=config.objective, weights=config.weights, credit=config.credit, weigh=weigh
        )
        self.stop = stop or StopRequest()
        temperature = config.teacher.temperature
        reference = Reference(start, temperature=temperature) if start else None
        loss = Loss(
            student, config=config.objective, temperature=temperature, credit=config.credit, reference=reference
        )
        self.bad = BadExamples() if bad is None else bad
        self.heldout = Heldout(
            student,
            examples=heldout,
            config=config,
            loss=loss,
            scorer=scorer,
            agreement=agreement,
            bad=self.bad,
            stop=self.stop,
        )
        self.metrics = metrics
        self.log = StepLog(student, config=config, metrics=metrics, rollouts=rollout_log)
        self.display = display
        self.stream = PromptStream(examples, prompts_per_step=config.rollout.prompts_per_step, seed=config.run.seed)
        self.rollouts = HfRollouts.of_run(student, config=config)
        self.scoring = scoring_for(
            scorer,
            teacher=config.teacher,
            objective=config.objective,
            agreement=agreement,
            vocabulary_size=student.vocabulary_size,
            stop=self.stop,
        )
        self.update = Update(student, config=config.optimizer, loss=loss, temperature=temperature)
        self.revisions = Revisions(agreement.revision)
        self.step = 0
        self._has_warned_of_few_scores = False
        if checkpoint:
            self._resume(checkpoint)

    def _resume(self, checkpoint: Path) -> None:
        self.step = checkpoint_step(checkpoint)
        load_optimizer(checkpoint, optimizer=self.update.optimizer)
        run = self.config.run
        if self.step > run.num_steps:
            raise RunDirectoryError(
                f"{run.directory} is at step {self.step} already: raise run.num_steps={run.num_steps}"
            )

    def run(self) -> Path:
        """Trains up to `run.num_steps`; returns the folder of the trained model. Raises StopRequestedError where it was
        asked to stop before, once the step that it is at is saved."""
        with self.stop.heeded():
            try:
                return self._run()
            except TeacherUnavailableError as error:
                raise self._stopped_without_teacher(error) from error
            except StopRequestedError as error:
                raise self._stopped_on_request() from error
            except InvalidDataError as error:
                if self.step == 0:
                    raise
                raise self._stopped_at_bad_data(error) from error

    def _run(self) -> Path:
        num_steps, run = self.config.run.num_steps, self.config.run
        if self.step == 0:
            self._measure("student")
            if self.config.evaluation.teacher_prompts:
                self._measure("teacher")
        self.display.begin(step=self.step, num_steps=num_steps)
        self._measure_if_due()  # a run that ended after this step may have had no time to
        while self.step < num_steps:
            self.stop.check()
            self.display.step(self.train_step())
            if self.step % run.checkpoint_every_steps == 0:
                self.save()
            self._measure_if_due()
        folder = self.save()
        self._measure("student")
        return folder

    def train_step(self) -> MetricRow:
        """One optimizer step, written down; returns its row of metrics. An error leaves the weights and the step as
        they were."""
        step = self.step + 1
        started = time.perf_counter()
        examples = self.stream.step(step)
        refused = self.bad.at_step(step, of="train")
        try:
            with self.stop.checked_by(self.student.base):
                for batch in self.rollouts.generate(examples, step=step, on_bad=refused):
                    self.scoring.submit(batch, name=f"step-{step}")
            rolled_out = time.perf_counter()
            scored = self.scoring.gather(on_refused=refused)
        finally:
            self.scoring.cancel()
            self.display.notice("")
        answered = time.perf_counter()
        view = view_teacher(scored)
        self._stop_at_non_finite(view, step=step)
        if scored:
            self._warn_of_few_scores(view, step=step)
        shaped = self.shaping.shape(scored, self._context(step))
        result = self.update.apply(shaped.scored, terms=shaped.terms, step=step)
        finished = time.perf_counter()
        self.step = step
        if result is None:
            _log.warning("step skipped, no position has a score: step=%d statuses=%s", step, view.num_by_status)
        return self.log.write(
            step,
            scored,
            view=view,
            num_refused_groups=refused.num_skipped,
            teacher_revision=self.revisions.see(scored, step=step),
            result=result,
            seconds={
                "rollout_seconds": rolled_out - started,
                "score_wait_seconds": answered - rolled_out,
                "train_seconds": finished - answered,
                "step_seconds": finished - started,
            },
        )

    def _context(self, step: int) -> StepContext:
        return StepContext(
            step=step,
            num_steps=self.config.run.num_steps,
            tokenizer=self.student.tokenizer,
            end_token_ids=self.student.end_token_ids,
        )

    def save(self) -> Path:
        """Saves the step that the run is at."""
        return save_checkpoint(
            self.config.run.directory,
            step=self.step,
            student=self.student,
            optimizer=self.update.optimizer,
            keep=self.config.run.keep_checkpoints,
        )

    def _measure_if_due(self) -> None:
        every_steps = self.config.evaluation.every_steps
        if every_steps and self.step and self.step % every_steps == 0:
            self._measure("student")

    def _measure(self, prompts: PromptsOf) -> None:
        """Answers the held-out examples, unless that is done for this step."""
        examples = self.heldout.examples
        kind = "heldout" if prompts == "student" else "heldout_teacher"
        if not examples or self.metrics.has(kind=kind, step=self.step):
            return
        self.display.notice(f"answering {len(examples)} held-out examples")
        try:
            row = self.heldout.measure(step=self.step, prompts=prompts)
        finally:
            self.display.notice("")
        self.metrics.write(row)
        self.display.heldout(row)

    def _warn_of_few_scores(self, view: TeacherView, *, step: int) -> None:
        if view.scored_share >= LOW_SCORED_SHARE or self._has_warned_of_few_scores:
            return
        self._has_warned_of_few_scores = True
        text = f"step {step}: only {view.scored_share:.0%} of the positions have a score; {advice(view)}"
        _log.warning("%s", text)
        self.display.warning(text)

    def _stop_at_non_finite(self, view: TeacherView, *, step: int) -> None:
        limit = self.config.run.max_non_finite_share
        if view.non_finite_share > limit:
            raise TrainingStoppedError(
                f"step {step}: {view.non_finite_share:.0%} of the positions came back from the teacher as NaN or "
                f"infinity, more than run.max_non_finite_share={limit}: the teacher's numbers overflow (its dtype?)"
            )

    def _stopped_at_bad_data(self, error: InvalidDataError) -> TrainingStoppedError:
        folder = self.save()
        return TrainingStoppedError(
            f"{error}. Step {self.step} is saved in {folder}; the same command continues from there"
        )

    def _stopped_without_teacher(self, error: TeacherUnavailableError) -> TrainingStoppedError:
        folder = self.save()
        return TrainingStoppedError(
            f"no answer from the teacher at {self.config.teacher.address} for "
            f"{self.config.teacher.patience_seconds:.0f} s ({error}). Step {self.step} is saved in {folder}; the same "
            "command continues from there once the teacher is back"
        )

    def _stopped_on_request(self) -> StopRequestedError:
        _log.info("run stops on request: step=%d", self.step)
        if not self.step:
            return StopRequestedError(
                "stopped before the first step was done: there is nothing to save, and the same command starts the run"
            )
        self.display.notice(f"saving step {self.step}")
        folder = self.save()
        return StopRequestedError(
            f"stopped: step {self.step} of {self.config.run.num_steps} is saved in {folder}; the same command "
            "continues from there"
        )
