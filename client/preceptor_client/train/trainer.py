"""The loop: roll out, score, update; measure and save when due. Owns the order of things and none of their insides."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from preceptor_client.errors import TeacherUnavailableError
from preceptor_client.train.checkpoint import checkpoint_step, load_optimizer, save_checkpoint
from preceptor_client.train.config import RunConfig
from preceptor_client.train.data import Example, PromptStream
from preceptor_client.train.display import Display
from preceptor_client.train.errors import RunDirectoryError, TrainingStoppedError
from preceptor_client.train.evaluate import PromptsOf, evaluate
from preceptor_client.train.metrics import MetricRow, Metrics
from preceptor_client.train.record import TeacherView, view_responses, view_teacher
from preceptor_client.train.rollout.hf import HfRollouts
from preceptor_client.train.scoring import ScoredRollout, Scorer, Scoring
from preceptor_client.train.student import Student
from preceptor_client.train.update import Update, UpdateResult

_log = logging.getLogger(__name__)

MAX_SAVED_ANSWERS = 32
"""Held-out answers that a row of metrics keeps, for the report."""


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
        config: RunConfig,
        examples: Sequence[Example],
        heldout: Sequence[Example],
        metrics: Metrics,
        display: Display,
        checkpoint: Path | None = None,
    ) -> None:
        """`checkpoint` is the one that `student` was loaded from."""
        self.student = student
        self.config = config
        self.heldout = heldout
        self.metrics = metrics
        self.display = display
        self.stream = PromptStream(examples, prompts_per_step=config.rollout.prompts_per_step, seed=config.run.seed)
        self.rollouts = HfRollouts(student, config=config.rollout, seed=config.run.seed)
        self.scoring = Scoring(
            scorer,
            config=config.teacher,
            tokenizer_id=student.tokenizer_id,
            vocabulary_size=student.head_VD.shape[0],
        )
        self.update = Update(student, config=config.optimizer, temperature=config.teacher.temperature)
        self.step = 0
        if checkpoint:
            self.step = checkpoint_step(checkpoint)
            load_optimizer(checkpoint, optimizer=self.update.optimizer)
        if self.step > config.run.num_steps:
            raise RunDirectoryError(
                f"{config.run.directory} is at step {self.step} already: raise run.num_steps={config.run.num_steps}"
            )

    def run(self) -> Path:
        """Trains up to `run.num_steps`; returns the folder of the trained model."""
        num_steps, run = self.config.run.num_steps, self.config.run
        if self.step == 0:
            self._measure("student")
            if self.config.evaluation.teacher_prompts:
                self._measure("teacher")
        self.display.begin(step=self.step, num_steps=num_steps)
        while self.step < num_steps:
            try:
                row = self.train_step()
            except TeacherUnavailableError as error:
                raise self._stopped_without_teacher(error) from error
            self.metrics.write(row)
            self.display.step(row)
            if self.step % run.checkpoint_every_steps == 0:
                self.save()
            if self.config.evaluation.every_steps and self.step % self.config.evaluation.every_steps == 0:
                self._measure("student")
        folder = self.save()
        self._measure("student")
        return folder

    def train_step(self) -> MetricRow:
        """One optimizer step; returns its row of metrics. An error leaves the weights and the step as they were."""
        step = self.step + 1
        started = time.perf_counter()
        examples = self.stream.step(step)
        try:
            for batch in self.rollouts.generate(examples, step=step):
                self.scoring.submit(batch, step=step)
            rolled_out = time.perf_counter()
            scored = self.scoring.gather()
        finally:
            self.scoring.cancel()
            self.display.notice("")
        answered = time.perf_counter()
        view = view_teacher(scored)
        self._stop_at_non_finite(view, step=step)
        result = self.update.apply(scored, step=step)
        finished = time.perf_counter()
        self.step = step
        if result is None:
            _log.warning("step skipped, no position has a score: step=%d statuses=%s", step, view.num_by_status)
        return _row(
            step,
            scored=scored,
            view=view,
            result=result,
            seconds={
                "rollout_seconds": rolled_out - started,
                "score_wait_seconds": answered - rolled_out,
                "train_seconds": finished - answered,
                "step_seconds": finished - started,
            },
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

    def _measure(self, prompts: PromptsOf) -> None:
        """Answers the held-out examples, unless that is done for this step."""
        kind = "heldout" if prompts == "student" else "heldout_teacher"
        if not self.heldout or self.metrics.has(kind=kind, step=self.step):
            return
        self.display.notice(f"answering {len(self.heldout)} held-out examples")
        started = time.perf_counter()
        result = evaluate(self.student, self.heldout, config=self.config.evaluation, prompts=prompts)
        row: MetricRow = {
            "kind": kind,
            "step": self.step,
            "accuracy": result.accuracy,
            "num_correct": result.num_correct,
            "num_examples": len(result.answers),
            "mean_answer_length": result.mean_answer_length,
            "seconds": time.perf_counter() - started,
            "answers": [asdict(answer) for answer in result.answers[:MAX_SAVED_ANSWERS]],
        }
        self.metrics.write(row)
        self.display.notice("")
        self.display.heldout(row)

    def _stop_at_non_finite(self, view: TeacherView, *, step: int) -> None:
        limit = self.config.run.max_non_finite_share
        if view.non_finite_share > limit:
            raise TrainingStoppedError(
                f"step {step}: {view.non_finite_share:.0%} of the positions came back from the teacher as NaN or "
                f"infinity, more than run.max_non_finite_share={limit}: the teacher's numbers overflow (its dtype?)"
            )

    def _stopped_without_teacher(self, error: TeacherUnavailableError) -> TrainingStoppedError:
        folder = self.save()
        return TrainingStoppedError(
            f"no answer from the teacher at {self.config.teacher.address} for "
            f"{self.config.teacher.patience_seconds:.0f} s ({error}). Step {self.step} is saved in {folder}; the same "
            "command continues from there once the teacher is back"
        )


def _row(
    step: int,
    *,
    scored: Sequence[ScoredRollout],
    view: TeacherView,
    result: UpdateResult | None,
    seconds: dict[str, float],
) -> MetricRow:
    responses = view_responses([one.rollout for one in scored])
    return {
        "kind": "step",
        "step": step,
        "loss": result.loss if result else None,
        "is_skipped": result is None,
        "num_positions": result.num_positions if result else 0,
        "student_mass": result.student_mass if result else None,
        "teacher_mass": view.teacher_mass,
        "outside_share": view.outside_share,
        "teacher_entropy": view.teacher_entropy,
        "teacher_logprob": view.teacher_logprob,
        "gradient_norm": result.gradient_norm if result else None,
        "learning_rate": result.learning_rate if result else None,
        **asdict(responses),
        **{f"num_{status}": number for status, number in view.num_by_status.items()},
        **seconds,
    }
